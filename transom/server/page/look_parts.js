// The parts of a look that are drawn: the strip of tokens, and the heads as panes of a window.

import { h, percent, visible } from "./dom.js";
import { MEANINGS, term } from "./terms.js";

const PANE = 24; // pixels of a thumbnail's side, as the server sends it
const SINK = 0.5; // a head with more of its weight than this on the first token is set apart

const bits = (nats) => `${(nats / Math.LN2).toFixed(1)} bits`;

/** An entropy in nats, with what this one means behind it. */
export const openness = (nats, when) =>
  term(`entropy ${bits(nats)}`, `How open the choice was ${when}: as open as among ${Math.exp(nats) < 10 ? Math.exp(nats).toFixed(1) : Math.round(Math.exp(nats)).toLocaleString("en")} things that are equally likely. 0 bits is certain, 1 bit is two alike, 2 bits are four.`);

/** What a view does not show, behind a word. */
export const say = (caveat) => h("details", { class: "look-caveat" }, h("summary", {}, "Keep in mind"), h("p", {}, `${caveat}.`));

/** A picture of insight as it is sent: what it found, how it is read, a table or bars, what it does not show. */
export function drawn({ finding, note, chart, text, caveat, doubted }) {
  const numbers = chart === null ? h("pre", {}, text) : CHARTS[chart.kind](chart);
  const body = doubted ? h("details", { class: "look-doubted" }, h("summary", {}, "Show the numbers anyway"), numbers) : numbers;
  return [finding && h("p", { class: "look-key" }, finding), note && h("p", { class: "quiet" }, note), body, say(caveat)].filter(Boolean);
}

const CHARTS = {
  table: ({ head, rows }) => h("div", { class: "look-scroll" }, h("table", { class: "look-table" },
    h("thead", {}, h("tr", {}, head.map((name) => h("th", {}, name)))),
    h("tbody", {}, rows.map(([name, cells]) => h("tr", {}, h("th", { scope: "row" }, name), cells.map(cell)))))),
  bars: ({ rows }) => h("ul", { class: "look-bars" }, rows.map(({ name, share, number, apart }) =>
    h("li", { "data-against": apart }, h("code", {}, name), h("small", {}, number), sized(h("i", { class: "look-meter", "aria-hidden": "true" }), share)))),
};

function cell({ text, note, share, title }) {
  return h("td", { title }, sized(h("code", { class: "lit" }, text), share), note && h("small", {}, note));
}

function sized(node, share) {
  node.style.setProperty("--p", share.toFixed(4));
  return node;
}

/** All tokens of an answer and what it answers: one stop of the Tab key, arrow keys walk it. */
export class Tokens {
  constructor(tokens, skip, { onhover, onleave, onpick }) {
    this.tokens = tokens;
    this.skip = skip;
    this.act = { onhover, onleave, onpick };
    this.here = -1;
    const before = skip ? h("button", { type: "button", class: "action", onclick: (event) => (event.target.remove(), this.unfold()) }, `${skip.toLocaleString("en")} tokens before`) : "";
    this.list = h("div", { class: "look-tokens", tabindex: "0", role: "group", "aria-label": "Tokens. Arrow keys walk them." });
    this.node = h("div", {}, before, this.list);
    this.list.append(...tokens.slice(skip).map((token, i) => this.token(token, i + skip)));
    const place = (event) => event.target.closest?.("[data-i]")?.dataset.i;
    this.list.addEventListener("mouseover", (event) => place(event) !== undefined && onhover(Number(place(event))));
    this.list.addEventListener("mouseleave", onleave);
    this.list.addEventListener("click", (event) => place(event) !== undefined && onpick(Number(place(event))));
    this.list.addEventListener("keydown", (event) => this.key(event));
  }

  token({ text, logprob, answer }, i) {
    const node = h("span", { class: answer ? "look-t" : "look-t told", "data-i": i }, /^[ ]?[\x21-\x7e\u00a1-\u024f]+$/.test(text) ? text : visible(text));
    node.style.setProperty("--p", logprob === null ? "0" : Math.exp(logprob).toFixed(4));
    return node;
  }

  unfold() {
    this.list.prepend(...this.tokens.slice(0, this.skip).map((token, i) => this.token(token, i)));
    this.skip = 0;
    this.mark(this.here);
  }

  at(i) {
    return this.list.children[i - this.skip];
  }

  key(event) {
    const step = { ArrowRight: 1, ArrowLeft: -1, Home: -Infinity, End: Infinity }[event.key];
    if (!step || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    this.act.onpick(Math.max(this.skip, Math.min(this.tokens.length - 1, this.here + step)));
  }

  mark(i) {
    this.list.querySelector(".marked")?.classList.remove("marked");
    this.here = i;
    const node = this.at(i);
    node?.classList.add("marked");
    if (node) this.list.scrollTop += node.getBoundingClientRect().top - this.list.getBoundingClientRect().top - this.list.clientHeight / 2;
  }

  from(i) {
    this.list.querySelector(".from")?.classList.remove("from");
    this.at(i)?.classList.add("from");
  }

  /** Light the keys of a row { keys, weights }; the first token, where it is a resting place, in grey. */
  light(row, sink) {
    for (const node of this.list.querySelectorAll("[data-lit]")) node.removeAttribute("data-lit");
    row?.keys.forEach((key, at) => {
      const node = this.at(key);
      if (!node || row.weights[at] < 0.01) return;
      node.setAttribute("data-lit", key === sink ? "sink" : "");
      node.style.setProperty("--w", Math.sqrt(row.weights[at]).toFixed(3));
    });
  }
}

const FEW = 12; // heads that are shown first, where a model has many
const MANY = 48;

const ORDERS = {
  worth: { label: "most telling first", of: (one) => one.worth },
  place: { label: "layer and head", of: (one) => 1000 * one.layer - one.head },
  moved: { label: "weight off the first token", of: (one) => 1 - one.sink },
  previous: { label: "weight on the token before", of: (one) => one.previous },
  duplicate: { label: "weight on the same token", of: (one) => one.duplicate },
  sharp: { label: "sharpest first", of: (one) => -one.entropy },
  distance: { label: "farthest first", of: (one) => one.distance },
};

/** The heads of all layers as panes; those that rest on the first token stand apart. */
export class Heads {
  constructor({ onpick }) {
    this.onpick = onpick;
    this.order = h("select", { "aria-label": "Order of the heads", onchange: () => this.draw() },
      Object.entries(ORDERS).map(([value, { label }]) => h("option", { value }, label)));
    this.kind = "";
    this.body = h("div", { class: "look-grids", onkeydown: (event) => this.key(event) });
    this.node = h("div", {}, h("label", { class: "look-order" }, "Order by ", this.order), this.body);
    this.panes = new Map();
  }

  /** What the view `heads` of the server holds. */
  show({ n_heads: across, size = PANE, thumbnails, caveat, ...figures }) {
    this.panes.clear();
    for (const option of this.order.options) option.disabled = !Number.isFinite(ORDERS[option.value].of({ layer: 0, head: 0, ...figures.heads[0] }));
    if (figures.heads.length <= MANY || this.order.selectedOptions[0].disabled) this.order.value = "place";
    this.kind = figures.kind;
    const bytes = Uint8Array.from(atob(thumbnails), (c) => c.charCodeAt(0));
    this.across = across;
    this.all = figures.heads.map((one, place) => ({ ...one, place, pixels: bytes.subarray(place * size * size, (place + 1) * size * size), size }));
    this.caveat = caveat;
    this.draw();
  }

  /** The pane of a head; drawn when it is first shown. */
  pane(one) {
    const name = `${one.layer}.${one.head}`;
    if (!this.panes.has(name)) this.panes.set(name, this.drawn(one, name));
    return this.panes.get(name);
  }

  drawn(one, name) {
    const canvas = h("canvas", { width: one.size, height: one.size, "aria-hidden": "true" });
    const context = canvas.getContext("2d");
    const image = context.createImageData(one.size, one.size);
    one.pixels.forEach((level, i) => image.data.set([224, 140, 8, level], 4 * i));
    context.putImageData(image, 0, 0);
    return h("button", {
      type: "button", class: "pane", tabindex: "-1", "data-head": name, "aria-pressed": name === this.chosen,
      "aria-label": `Layer ${one.layer}, head ${one.head}: ${told(one)}`, title: `${name}  ${told(one)}`, onclick: () => this.onpick(one.layer, one.head),
    }, canvas);
  }

  draw() {
    const { value } = this.order;
    const { of } = ORDERS[value];
    const sorted = this.all.toSorted((a, b) => of(b) - of(a) || a.place - b.place);
    const shown = value === "worth" ? sorted.slice(0, FEW) : sorted;
    const whole = h("button", { type: "button", class: "action", onclick: () => ((this.order.value = "place"), this.draw(), this.body.querySelector("[aria-pressed=true]")?.focus()) },
      `Show all ${this.all.length.toLocaleString("en")} heads in their places`);
    const greyed = this.kind !== "cross" && shown.some((one) => this.rests(one)) && h("p", { class: "look-key" }, "Grey: ", term("at rest", MEANINGS.sink), ", with most of its weight on the first token.");
    this.body.replaceChildren(...[this.window(shown), greyed, shown.length < this.all.length && whole, say(this.caveat)].filter(Boolean));
    this.stops();
  }

  rests(one) {
    return this.kind !== "cross" && one.sink > SINK;
  }

  /** Panes in a frame; in their places a row is a layer, the last one on top, and says so. */
  window(list) {
    const placed = this.order.value === "place" && this.across <= 16;
    const node = h("div", { class: "look-window", "data-placed": placed });
    node.style.setProperty("--across", placed ? this.across : Math.max(6, Math.min(this.across, 12)));
    let layer = null;
    for (const one of list) {
      if (placed && one.layer !== layer) node.append(h("span", { class: "look-place", "aria-hidden": "true" }, one.layer));
      layer = one.layer;
      const pane = this.pane(one);
      pane.toggleAttribute("data-rests", this.rests(one));
      pane.style.gridColumn = placed ? one.head + 2 : "auto";
      node.append(pane);
    }
    if (placed) node.append(h("span", { class: "look-place", "aria-hidden": "true" }, "layer"), ...Array.from({ length: this.across }, (_, i) => h("span", { class: "look-place", "aria-hidden": "true" }, i)));
    return node;
  }

  /** The head to begin with: of those that move anything, the one that moves most. */
  first() {
    const { layer, head } = this.all.toSorted((a, b) => b.worth - a.worth)[0];
    return [layer, head];
  }

  mark(layer, head) {
    this.chosen = `${layer}.${head}`;
    for (const pane of this.panes.values()) pane.setAttribute("aria-pressed", pane.dataset.head === this.chosen);
    this.stops();
  }

  /** One pane is a stop of the Tab key: the chosen one. */
  stops() {
    const all = [...this.body.querySelectorAll(".pane")];
    const stop = all.find((pane) => pane.getAttribute("aria-pressed") === "true") ?? all[0];
    for (const pane of all) pane.tabIndex = pane === stop ? 0 : -1;
  }

  key(event) {
    const all = [...this.body.querySelectorAll(".pane")];
    const place = all.indexOf(document.activeElement);
    const across = Number(document.activeElement.parentNode?.style?.getPropertyValue("--across")) || 1;
    const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: across, ArrowUp: -across }[event.key];
    if (!step || place < 0) return;
    event.preventDefault();
    all[Math.max(0, Math.min(all.length - 1, place + step))].focus();
  }

  describe(layer, head) {
    const one = this.all.find((one) => one.layer === layer && one.head === head);
    const [far, near] = places(one);
    return [far, openness(one.entropy, "of where to take from"), ", ", term("first token", MEANINGS.sink), ` ${percent(one.sink)}${near}`];
  }
}

/** How far back a head takes from, and how much from the token before; empty between two texts. */
const places = ({ distance, previous }) => [
  distance === undefined ? "" : `takes from ${distance.toFixed(1)} tokens away on average, `, previous === undefined ? "" : `, the token before ${percent(previous)}`];

function told(one) {
  const [far, near] = places(one);
  return `${far}entropy ${bits(one.entropy)}, first token ${percent(one.sink)}${near}`;
}
