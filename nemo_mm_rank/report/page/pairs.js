// The gallery: which pairs are shown, in which order, a page of them at a time.

const CARDS = 24;
const LINES = 50;

const VIEWS = [
  { name: "top", title: "Top", about: "Chosen pairs, best first." },
  { name: "near", title: "Around the cut", about: "Pairs nearest to the cut, chosen or not: where the choice is closest." },
  { name: "bottom", title: "Bottom", about: "Ranked pairs, last first." },
  { name: "lost", title: "Quarantined", about: "Pairs that could not be ranked, and why." },
  { name: "all", title: "All pairs", about: "Every pair in this page, by rank." },
];

const state = { view: "top", page: 0, modalities: new Set(), pool: "", blend: "", words: "" };
const listeners = [];

function change(values) {
  Object.assign(state, { page: 0 }, values);
  for (const listener of listeners) listener();
}

let haystack = null;

function found(index, words) {
  // Lower case is made once, when somebody first searches.
  haystack ||= data.id.map((id, place) => {
    const detail = data.details[place];
    const texts = detail ? [...(detail.data || []).map((part) => part.pieces || []), detail.annotation || []] : [];
    const pieces = texts.flat().map((piece) => piece[0]);
    const lost = detail && detail.lost ? detail.lost : [];
    const planted = (data.truth && data.truth[place]) || [];
    return [id, data.text[place], ...pieces, ...lost, ...planted].join(" ").toLowerCase();
  });
  return words.every((word) => haystack[index].includes(word));
}

function inBlend(index) {
  if (state.blend === "") return true;
  if (isLost(index)) return false;
  if (state.blend === "none") return blends.every((blend) => !blend.place.has(index));
  return blends[Number(state.blend)].place.has(index);
}

function passes(index, words) {
  return (
    (state.modalities.size === 0 || state.modalities.has(data.modality[index])) &&
    (state.pool === "" || data.pool[index] === Number(state.pool)) &&
    inBlend(index) &&
    (words.length === 0 || found(index, words))
  );
}

const range = (start, end) => Array.from({ length: Math.max(0, end - start) }, (_, place) => start + place);
const ranked = range(0, data.shown);
const byDistance = ranked
  .filter((index) => data.distance[index] !== null)
  .sort((a, b) => Math.abs(data.distance[a]) - Math.abs(data.distance[b]) || a - b);
const lost = range(data.shown, data.id.length);

function ordered(view) {
  if (view === "top") {
    const chosen = state.blend === "" || state.blend === "none" ? 0 : Number(state.blend);
    return state.blend === "none" ? ranked : blends[chosen].pairs;
  }
  return { near: byDistance, bottom: [...ranked].reverse(), lost, all: [...ranked, ...lost] }[view];
}

function selected(view) {
  const words = state.words.toLowerCase().split(/\s+/).filter(Boolean);
  return ordered(view).filter((index) => passes(index, words));
}

function filters() {
  const chips = data.modalities.map((modality, code) =>
    el("button", {
      type: "button", class: "chip", "aria-pressed": "false", "data-modality": modality.name,
      onclick: (event) => {
        const on = !state.modalities.has(code);
        if (on) state.modalities.add(code);
        else state.modalities.delete(code);
        event.currentTarget.setAttribute("aria-pressed", String(on));
        change({});
      },
    }, dot(modality.colour), modality.name));
  const pools = el("select", { onchange: (event) => change({ pool: event.target.value }) },
    el("option", { value: "" }, "all pools"),
    data.pools.map((pool, code) => el("option", { value: code }, pool.name)));
  const strategies = el("select", { onchange: (event) => change({ blend: event.target.value }) },
    el("option", { value: "" }, "chosen or not"),
    blends.map((blend, place) => el("option", { value: place, title: blend.note },
      blends.length === 1 ? "in the blend" : `chosen by ${blend.name}`)),
    el("option", { value: "none" }, blends.length === 1 ? "not in the blend" : "chosen by none"));
  const search = el("input", {
    type: "search", placeholder: "words in id, text or reason", autocomplete: "off", spellcheck: "false",
    oninput: (event) => change({ words: event.target.value }),
  });
  return el("form", { class: "filters", id: "filters", onsubmit: (event) => event.preventDefault() },
    el("fieldset", {}, el("legend", {}, "Modality"), el("div", { class: "chips" }, chips)),
    el("label", {}, "Pool", pools),
    el("label", {}, "Strategy", strategies),
    el("label", { class: "search" }, "Text", search));
}

function tabs(body) {
  const buttons = VIEWS.map((view) =>
    el("button", {
      type: "button", role: "tab", id: `tab-${view.name}`, "aria-controls": "pairs-body",
      onclick: () => change({ view: view.name }),
      onkeydown: (event) => {
        const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
        if (!step) return;
        const at = VIEWS.findIndex((one) => one.name === state.view);
        const next = VIEWS[(at + step + VIEWS.length) % VIEWS.length].name;
        change({ view: next });
        document.getElementById(`tab-${next}`).focus();
      },
    }));
  return {
    node: el("div", { class: "tabs", role: "tablist", "aria-label": "Which pairs" }, buttons),
    update: (counts) => {
      VIEWS.forEach((view, place) => {
        const on = view.name === state.view;
        buttons[place].setAttribute("aria-selected", String(on));
        buttons[place].tabIndex = on ? 0 : -1;
        buttons[place].replaceChildren(view.title, el("small", {}, whole(counts[view.name])));
      });
      body.setAttribute("aria-labelledby", `tab-${state.view}`);
    },
  };
}

function pager(total, size) {
  const pages = Math.max(1, Math.ceil(total / size));
  const first = state.page * size;
  const turn = (to) => {
    Object.assign(state, { page: to });
    for (const listener of listeners) listener();
    document.getElementById("pairs-widget").scrollIntoView({ block: "start" });
  };
  return el("div", { class: "pager" },
    el("button", { type: "button", disabled: state.page === 0, onclick: () => turn(state.page - 1) }, "Previous"),
    el("span", { role: "status", "aria-live": "polite" },
      total ? `${whole(first + 1)}\u2013${whole(Math.min(total, first + size))} of ${whole(total)}` : "no pair"),
    el("button", { type: "button", disabled: state.page >= pages - 1, onclick: () => turn(state.page + 1) }, "Next"));
}

function lines(indices) {
  const heads = ["rank", "score", "modality", "pool", "pair", "annotation"];
  return el("div", { class: "scroll" }, el("table", { class: "lines" },
    el("thead", {}, el("tr", {}, heads.map((head, place) =>
      el("th", { scope: "col", class: place < 2 ? "number" : null }, head)))),
    el("tbody", {}, indices.map((index) => {
      const chosen = blends.some((blend) => blend.place.has(index));
      return el("tr", { class: isLost(index) ? "warn" : chosen ? "chosen" : null, "data-pair": data.id[index] },
        el("td", { class: "number" }, isLost(index) ? "\u2013" : whole(data.rank[index])),
        el("td", { class: "number" }, isLost(index) ? "\u2013" : signed(data.score[index])),
        el("td", {}, dot(modalityOf(index).colour), modalityOf(index).name),
        el("td", {}, poolOf(index).name),
        el("td", {}, el("button", { type: "button", class: "link", dir: "auto", onclick: () => openPair(index) },
          data.id[index] || "(no id)")),
        el("td", { class: "excerpt", dir: "auto" }, data.text[index]));
    }))));
}

function pairsWidget() {
  const widget = document.getElementById("pairs-widget");
  if (!widget) return;
  const body = el("div", { id: "pairs-body", role: "tabpanel" });
  const bar = tabs(body);
  const about = el("p", { class: "about" });
  widget.replaceChildren(filters(), bar.node, about, body);
  const update = () => {
    const counts = Object.fromEntries(VIEWS.map((view) => [view.name, selected(view.name).length]));
    bar.update(counts);
    const all = selected(state.view);
    const size = state.view === "all" ? LINES : CARDS;
    const shown = all.slice(state.page * size, (state.page + 1) * size);
    about.textContent = VIEWS.find((view) => view.name === state.view).about + said(state.view);
    const content = state.view === "all" ? lines(shown) : el("div", { class: "cards" }, shown.map(card));
    const nothing = el("p", { class: "empty" }, "No pair fits these filters.");
    body.replaceChildren(shown.length ? content : nothing, pager(all.length, size));
  };
  listeners.push(update);
  update();
}

// What this page leaves out, where it leaves something out.
function said(view) {
  if (view === "lost") {
    const out = data.quarantined - lost.length;
    return out ? ` ${whole(lost.length)} of ${whole(data.quarantined)} are in this page, some of every reason.` : "";
  }
  return data.shown < data.ranked
    ? ` ${whole(data.shown)} of ${whole(data.ranked)} ranked pairs are in this page: those shown first, and a sample.`
    : "";
}
