// One pair: its two sides with what was trimmed, what can be seen and heard of it, and what its score is made of.

function text(pieces, tag, kind) {
  return el(tag, { class: kind, dir: "auto" }, pieces.map(([piece, kept]) => (kept ? piece : el("del", {}, piece))));
}

function timeline(media) {
  if (!media.windows) return null;
  const span = media.end - media.start || 1;
  const at = (time) => Math.max(0, Math.min(100, (100 * (time - media.start)) / span));
  const kept = media.windows.map(([start, end]) => `M${at(start).toFixed(1)} 2H${at(end).toFixed(1)}`).join("");
  const said = media.windows.map(([start, end]) => `${times.format(start)}\u2013${times.format(end)} s`).join(", ");
  return el("div", { class: "timeline" },
    svg("svg", { viewBox: "0 0 100 4", preserveAspectRatio: "none", "aria-hidden": "true" },
      svg("path", { class: "whole", d: "M0 2H100" }), svg("path", { class: "kept", d: kept })),
    el("small", {}, `kept ${said}`));
}

function picture(media, name) {
  const image = el("img", { src: media.src, alt: name, decoding: "async" });
  if (!media.boxes) return el("div", { class: "picture" }, image);
  // Dim what was cut off: the frame is all of the image less the boxes.
  const d = media.boxes.map(([x, y, w, h]) => `M${x} ${y}h${w}v${h}h${-w}z`).join("");
  return el("div", { class: "picture" }, el("div", { class: "boxed" }, image,
    svg("svg", { viewBox: "0 0 1 1", preserveAspectRatio: "none", role: "img", "aria-label": "kept part of the image" },
      svg("path", { class: "cut-off", "fill-rule": "evenodd", d: `M0 0H1V1H0z${d}` }),
      svg("path", { class: "kept", d }))));
}

function seen(media) {
  if (media.pieces) return text(media.pieces, "pre", media.kind === "code" ? "content code" : "content");
  if (media.missing) return el("p", { class: "missing", dir: "auto" }, media.missing);
  const name = media.name || "";
  if (media.kind === "image") return picture(media, name);
  const played = `${times.format(media.start)}\u2013${times.format(media.end)} s`;
  const player = media.kind === "video"
    ? el("video", { src: media.src, controls: true, loop: true, muted: true, playsinline: true, preload: "metadata" })
    : el("audio", { src: media.src, controls: true, preload: "metadata" });
  player.setAttribute("aria-label", `${name}, ${played}`);
  return el("div", { class: media.kind }, player, timeline(media), el("small", { class: "played" }, `plays ${played}`));
}

function parts(detail) {
  if (!detail.parts) return null;
  const most = Math.max(1e-9, ...detail.parts.map(([, value]) => Math.abs(value)));
  return el("table", { class: "score-parts" }, el("tbody", {}, detail.parts.map(([name, value]) => {
    const width = (48 * Math.abs(value)) / most;
    const x = value < 0 ? 50 - width : 50;
    return el("tr", {},
      el("th", { scope: "row" }, name),
      el("td", { class: "bar" }, svg("svg", { viewBox: "0 0 100 10", preserveAspectRatio: "none", "aria-hidden": "true" },
        svg("path", { class: "middle", d: "M50 0V10" }),
        svg("path", { class: value < 0 ? "less" : "more", d: `M${x.toFixed(1)} 1h${width.toFixed(1)}v8h${-width.toFixed(1)}z` }))),
      el("td", { class: "number" }, signed(value)));
  })));
}

function heading(index) {
  const status = isLost(index)
    ? el("span", { class: "badge warn" }, "quarantined")
    : blends.some((blend) => blend.place.has(index))
      ? chosenBy(index)
      : el("span", { class: "badge" }, "left out");
  return el("div", { class: "heading" },
    el("span", { class: "kind" }, dot(modalityOf(index).colour), modalityOf(index).name),
    el("span", { class: "pool" }, poolOf(index).name), status);
}

function chosenBy(index) {
  const names = blends.filter((blend) => blend.place.has(index)).map((blend) => blend.name);
  const said = blends.length === 1 ? "chosen" : `chosen by ${names.length} of ${blends.length}`;
  return el("span", { class: "badge chosen", title: names.join(", ") }, said);
}

function standing(index) {
  if (isLost(index)) return null;
  const distance = data.distance[index];
  return el("p", { class: "standing" },
    el("strong", {}, `#${whole(data.rank[index])}`), ` of ${whole(data.ranked)}, score ${signed(data.score[index])}`,
    distance === null ? "" : `, ${fixed(Math.abs(distance), 2)} ${distance < 0 ? "below" : "above"} the cut`);
}

function truth(index) {
  if (!data.truth || isLost(index)) return null;
  const kinds = data.truth[index];
  if (kinds === null || kinds === undefined) return null;
  const topic = data.relevant && data.relevant[index] !== null
    ? el("span", { class: `badge ${data.relevant[index] ? "chosen" : "warn"}` }, data.relevant[index] ? "on topic" : "off topic")
    : null;
  return el("p", { class: "truth" }, kinds.length
    ? el("span", { class: "badge warn" }, `planted: ${kinds.join(", ")}`)
    : el("span", { class: "badge chosen" }, "clean"), topic);
}

function reasons(detail) {
  const found = [];
  if (detail.lost) {
    const [step, error, message] = detail.lost;
    found.push(el("p", { class: "lost", dir: "auto" }, el("strong", {}, `${step}: ${error}`), ` ${message}`));
  }
  if (detail.place) found.push(el("p", { class: "place", dir: "auto" }, detail.place));
  if (detail.double) found.push(el("p", { class: "double", dir: "auto" }, `near-equal to ${detail.double}, which is in the blend`));
  return found;
}

function card(index) {
  const detail = data.details[index];
  const name = data.id[index] || "(no id)";
  return el("article", { class: isLost(index) ? "card lost-card" : "card", "data-pair": data.id[index] },
    heading(index),
    (detail && detail.data ? detail.data : []).map(seen),
    detail && detail.annotation
      ? text(detail.annotation, "p", "annotation")
      : isLost(index) ? null : el("p", { class: "annotation", dir: "auto" }, data.text[index]),
    truth(index), detail ? reasons(detail) : null, standing(index), detail ? parts(detail) : null,
    el("button", { type: "button", class: "link id", dir: "auto", onclick: () => openPair(index) }, name));
}

function facts(index, detail) {
  const rows = [];
  const add = (name, value) => rows.push(el("dt", {}, name), el("dd", { dir: "auto" }, value));
  for (const blend of blends) {
    if (blend.place.has(index)) add(blends.length === 1 ? "place in the blend" : `place with ${blend.name}`,
      `${whole(blend.place.get(index) + 1)} of ${whole(blend.size)}`);
  }
  if (detail.reason) add("why chosen", detail.reason);
  if (detail.sns) add("trimming", detail.sns);
  for (const [name, said] of detail.told || []) add(`described by ${name}`, said);
  for (const part of detail.data || []) if (part.name) add("data", part.name);
  for (const [name, value] of detail.facts || []) add(name, value);
  return el("dl", { class: "facts" }, rows);
}

let dialog = null;

function openPair(index) {
  if (!dialog) {
    dialog = el("dialog", { id: "pair", "aria-labelledby": "pair-title", onclick: (event) => {
      if (event.target === dialog) dialog.close();  // beside it
    }, onclose: () => dialog.replaceChildren() });
    document.body.append(dialog);
  }
  const detail = data.details[index] || {};
  const more = data.details[index]
    ? facts(index, detail)
    : el("p", { class: "missing" }, "This page has the contents of the first pairs of every view only; "
        + "nemo-mm-rank explain RUN PAIR_ID says more about this pair.");
  dialog.replaceChildren(el("div", { class: "sheet" },
    el("header", {}, el("h3", { id: "pair-title", dir: "auto" }, data.id[index] || "(no id)"),
      el("button", { type: "button", class: "close", "aria-label": "Close", onclick: () => dialog.close() }, "\u00d7")),
    heading(index), (detail.data || []).map(seen),
    detail.annotation ? text(detail.annotation, "p", "annotation") : el("p", { class: "annotation", dir: "auto" }, data.text[index]),
    truth(index), reasons(detail), standing(index), parts(detail), more));
  dialog.showModal();
}

function trimmedWidget() {
  const widget = document.getElementById("trimmed-widget");
  if (!widget) return;  // nothing was to be trimmed
  const cards = data.trimmed.map((index) => {
    const shown = card(index);
    shown.append(el("p", { class: "place", dir: "auto" }, (data.details[index] || {}).sns));
    return shown;
  });
  widget.replaceChildren(cards.length ? el("div", { class: "cards" }, cards) : el("p", { class: "empty" }, "No pair was cut."));
}
