// Elements are made from text, never from markup: what comes from the data stays text.

const SVG = "http://www.w3.org/2000/svg";

function make(node, properties, children) {
  for (const [name, value] of Object.entries(properties || {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  for (const child of children.flat()) {
    if (child !== null && child !== undefined) node.append(child);
  }
  return node;
}

const el = (tag, properties, ...children) => make(document.createElement(tag), properties, children);
const svg = (tag, properties, ...children) => make(document.createElementNS(SVG, tag), properties, children);

// A page without pairs has none of these.
const nothing = { shown: 0, id: [], distance: [], modalities: [], pools: [], blends: [], trimmed: [], details: {}, maps: [] };
const data = { ...nothing, ...JSON.parse(document.getElementById("data").textContent) };

const whole = (n) => n.toLocaleString("en-US");
const signed = (x, digits = 2) => {
  const size = Math.abs(x).toFixed(digits);
  return (Number(size) === 0 ? "" : x < 0 ? "\u2212" : "+") + size;
};
const fixed = (x, digits = 3) => (x < 0 ? "\u2212" : "") + Math.abs(x).toFixed(digits);
const times = new Intl.NumberFormat("en-US", { maximumFractionDigits: 2 });

const modalityOf = (index) => data.modalities[data.modality[index]] || { name: "unknown", colour: -1 };
const poolOf = (index) => data.pools[data.pool[index]] || { name: "", colour: -1 };
const isLost = (index) => index >= data.shown;

// Per blend: index of a pair on this page -> its place in the blend.
const blends = data.blends.map((blend) => ({
  ...blend,
  place: new Map(blend.pairs.map((index, place) => [index, place])),
}));

const dot = (colour) => el("span", { class: `dot c${colour}` });
