// Maps: one path for each colour, so that thousands of points are a handful of elements.

const BY = {
  modality: { title: "modality", names: () => data.modalities, of: (pair) => data.modality[pair] },
  pool: { title: "pool", names: () => data.pools, of: (pair) => data.pool[pair] },
  chosen: {
    title: "chosen or not",
    names: () => [{ name: "left out", colour: "out" },
      { name: blends.length === 1 ? "chosen" : `chosen by ${blends[0].name}`, colour: "in" }],
    of: (pair) => (blends[0].place.has(pair) ? 1 : 0),
  },
};

if (data.truth) {
  BY.truth = {
    title: "planted noise",
    names: () => [{ name: "clean", colour: 0 }, { name: "noise", colour: 9 }],
    of: (pair) => (data.truth[pair] === null ? -1 : Number(data.truth[pair].length > 0)),
  };
}

const look = { by: "modality", hidden: new Set() };

function paths(map) {
  const by = BY[look.by];
  const names = by.names();
  const shapes = names.map(() => ["", ""]);
  map.x.forEach((x, point) => {
    const anchor = point >= map.data;
    const group = shapes[by.of(map.pair[point])];
    if (group) group[anchor ? 1 : 0] += anchor ? `M${x} ${map.y[point] - 7}l7 7-7 7-7-7z` : `M${x} ${map.y[point]}h0`;
  });
  const drawn = (side, kind) => shapes.map((shape, code) =>
    look.hidden.has(code) ? null : svg("path", { class: `${kind} c${names[code].colour}`, d: shape[side] || "M0 0" }));
  return [...drawn(1, "anchors"), ...drawn(0, "points")];
}

// The pair's two points where both are on the map, the nearest one first.
function nearest(map, x, y) {
  const by = BY[look.by];
  let best = -1, least = 40 * 40;
  map.x.forEach((mx, point) => {
    const distance = (mx - x) ** 2 + (map.y[point] - y) ** 2;
    if (distance < least && !look.hidden.has(by.of(map.pair[point]))) [best, least] = [point, distance];
  });
  if (best < 0) return null;
  const other = map.pair.findIndex((pair, point) => pair === map.pair[best] && point !== best);
  return { point: best, pair: map.pair[best], other };
}

function mapFigure(map) {
  const ground = svg("g", {});
  const mark = svg("g", { class: "marked" });
  const drawing = svg("svg", { viewBox: "-30 -30 1060 780", role: "img", class: "map",
    "aria-label": `Map of the space ${map.title}: ${whole(map.data)} pairs` }, ground, mark);
  const tip = el("p", { class: "tip", "aria-hidden": "true" });
  const at = (event) => {
    const point = new DOMPoint(event.clientX, event.clientY).matrixTransform(drawing.getScreenCTM().inverse());
    return nearest(map, point.x, point.y);
  };
  const point = (event) => {
    const hit = at(event);
    if (!hit) return leave();
    const [x, y] = [map.x[hit.point], map.y[hit.point]];
    const line = hit.other < 0 ? null : svg("path", { d: `M${x} ${y}L${map.x[hit.other]} ${map.y[hit.other]}` });
    mark.replaceChildren(...[line, svg("circle", { cx: x, cy: y, r: 16 })].filter(Boolean));
    tip.replaceChildren(dot(modalityOf(hit.pair).colour), el("strong", {}, data.id[hit.pair]), ` ${data.text[hit.pair]}`);
    tip.classList.add("on");
  };
  const leave = () => { mark.replaceChildren(); tip.classList.remove("on"); };
  drawing.addEventListener("pointermove", point);
  drawing.addEventListener("pointerleave", leave);
  drawing.addEventListener("click", (event) => { const hit = at(event); if (hit) openPair(hit.pair); });
  const update = () => ground.replaceChildren(...paths(map).filter(Boolean));
  update();
  return {
    update,
    node: el("figure", { class: "map-figure", "data-space": map.title },
      el("h3", {}, map.title, el("small", {}, map.note)), drawing, tip),
  };
}

function mapsWidget() {
  const widget = document.getElementById("maps-widget");
  if (!widget) return;
  if (!data.maps.length) {
    widget.replaceChildren(el("p", { class: "empty" }, "Too few pairs for a map."));
    return;
  }
  const figures = data.maps.map(mapFigure);
  const legend = el("div", { class: "chips legend", role: "group", "aria-label": "Show or hide" });
  const update = () => {
    for (const figure of figures) figure.update();
    legend.replaceChildren(...BY[look.by].names().map((name, code) =>
      el("button", { type: "button", class: "chip", "aria-pressed": String(!look.hidden.has(code)),
        onclick: () => {
          if (look.hidden.has(code)) look.hidden.delete(code);
          else look.hidden.add(code);
          update();
        } }, dot(name.colour), name.name)));
  };
  const choice = el("fieldset", {}, el("legend", {}, "Colour by"), el("div", { class: "choice" }, Object.entries(BY).map(([name, by]) =>
    el("label", {}, el("input", { type: "radio", name: "colour-by", value: name, checked: name === look.by,
      onchange: () => { look.by = name; look.hidden.clear(); update(); } }), by.title))));
  widget.replaceChildren(el("form", { class: "filters", onsubmit: (event) => event.preventDefault() }, choice, legend),
    el("div", { class: "maps" }, figures.map((figure) => figure.node)));
  update();
}
