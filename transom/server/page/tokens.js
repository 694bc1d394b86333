// Tokens as they were written: where each lies in the text, how likely it was, and what else it could have been.
//
// A token is { id, text, p, written, top: [{ id, text, p }] }: p a probability, `written` its part of the text. A block of written text is one stop of
// the Tab key; arrow keys walk its tokens and Enter opens one, so that a screen reader still reads plain text.

import { $, announce, h, percent, visible } from "./dom.js";
import { blockNode, blocks } from "./markdown.js";

export const ALTERNATIVES = 8;

const whole = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
const encoder = new TextEncoder();

/** One entry of the API's `logprobs.content` as a token. */
export const tokenOf = (entry) => ({ ...named(entry), top: (entry.top_logprobs ?? []).map(named) });

/** A token by what it writes; one that writes nothing, or part of a character, keeps its bytes beside its name. */
function named({ token, token_id: id, logprob, bytes }) {
  const p = Math.exp(logprob);
  try {
    if (bytes?.length) return { id, p, text: whole.decode(new Uint8Array(bytes)) };
  } catch {
    /* part of a character */
  }
  return { id, p, text: token, bytes: bytes ?? [] };
}

/** What a token writes as the next of a stream: part of a character is held back until it is whole. */
export function writer() {
  const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  return ({ text, bytes }) => decoder.decode(bytes ? new Uint8Array(bytes) : encoder.encode(text), { stream: true });
}

/** Where each token begins in the text it wrote: ascending places, one more than there are tokens. */
export function places(text, tokens) {
  const starts = [];
  let at = 0;
  for (const { written } of tokens) {
    starts.push(at);
    // The first word of a text may have lost its space; a stop string may have cut the last token.
    const fits = [written, written.trimStart()].find((part) => text.startsWith(part, at));
    at += fits === undefined ? text.length - at : fits.length;
  }
  starts.push(Math.min(at, text.length));
  return starts;
}

/** How sure a token was, in five steps: 0 as good as certain, 4 one of many. */
export const doubt = (p) => (p >= 0.9 ? 0 : p >= 0.6 ? 1 : p >= 0.3 ? 2 : p >= 0.1 ? 3 : 4);

/** Text that tokens wrote, as a node that can be written on: `update(text, tokens)`. */
export class Written {
  constructor({ markdown, onpick, warning = () => "" }) {
    this.markdown = markdown;
    this.onpick = onpick;
    this.warning = warning;
    this.text = "";
    this.tokens = [];
    this.shown = []; // the blocks as they stand: { key, node }
    this.here = -1;
    this.node = h("div", {
      class: "written", tabindex: "0", role: "group",
      "aria-label": "Written text. Arrow keys walk its tokens, Enter shows the alternatives of one.",
      onclick: (event) => this.clicked(event),
      onkeydown: (event) => this.key(event),
      onfocus: () => this.mark(this.here),
      onblur: () => this.unmark(),
    });
  }

  update(text, tokens) {
    this.text = text;
    this.tokens = tokens;
    this.starts = places(text, tokens);
    const parts = this.markdown ? blocks(text) : [{ kind: "raw", start: 0, end: text.length }];
    const leaf = (parent, from, to) => this.leaf(parent, from, to);
    parts.forEach((block, i) => {
      const key = `${block.kind} ${block.start} ${tokens.length > 0} ${text.slice(block.start, block.end)}`;
      if (this.shown[i]?.key === key && i < parts.length - 1) return;
      const node = this.markdown ? blockNode(text, block, leaf) : h("pre", { class: "raw" });
      if (!this.markdown) leaf(node, 0, text.length);
      if (this.shown[i]) this.shown[i].node.replaceWith(node);
      else this.node.append(node);
      this.shown[i] = { key, node };
    });
    for (const { node } of this.shown.splice(parts.length)) node.remove();
  }

  /** A piece of the text, in the tokens that wrote it. */
  leaf(parent, from, to) {
    const { starts, tokens, text } = this;
    let low = 0;
    let high = tokens.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (starts[middle + 1] > from) high = middle;
      else low = middle + 1;
    }
    let at = from;
    for (; low < tokens.length && at < to; low++) {
      const end = Math.min(to, starts[low + 1]);
      if (end <= at) continue;
      const { p } = tokens[low];
      parent.append(h("span", { class: "t", "data-i": low, "data-doubt": doubt(p) }, text.slice(at, end)));
      at = end;
    }
    if (at < to) parent.append(text.slice(at, to)); // written by nobody we know
  }

  clicked(event) {
    const span = event.target.closest?.(".t");
    if (!span || event.target.closest("a") || String(getSelection()).length) return;
    this.open(Number(span.dataset.i));
  }

  key(event) {
    if (event.target !== this.node || !this.tokens.length || event.metaKey) return;
    if (event.key === "Enter" && this.here >= 0) this.open(this.here);
    else {
      const next = this.next(event.key);
      if (next === null) return;
      this.mark(next);
      const token = this.tokens[this.here];
      announce(`${visible(token.text)}, ${percent(token.p)}`);
    }
    event.preventDefault();
  }

  /** The token that a key leads to: left and right by one, up and down by a line, Home and End; null by others. */
  next(key) {
    const spans = [...this.node.querySelectorAll(".t")];
    const all = [...new Set(spans.map((span) => Number(span.dataset.i)))];
    const at = all.indexOf(this.here);
    if (key === "Home" || (at < 0 && ["ArrowRight", "ArrowDown"].includes(key))) return all[0];
    if (key === "End" || (at < 0 && ["ArrowLeft", "ArrowUp"].includes(key))) return all.at(-1);
    if (key === "ArrowRight" || key === "ArrowLeft")
      return all[Math.max(0, Math.min(all.length - 1, at + (key === "ArrowRight" ? 1 : -1)))];
    if (key !== "ArrowDown" && key !== "ArrowUp") return null;
    const boxes = spans.map((span) => ({ place: Number(span.dataset.i), box: span.getBoundingClientRect() }));
    const { box: from } = boxes.find(({ place }) => place === this.here);
    const down = key === "ArrowDown";
    const beyond = boxes.filter(({ box }) => (down ? box.top > from.bottom - 4 : box.bottom < from.top + 4));
    if (!beyond.length) return down ? all.at(-1) : all[0];
    const line = down ? Math.min(...beyond.map(({ box }) => box.top)) : Math.max(...beyond.map(({ box }) => box.top));
    const near = beyond.filter(({ box }) => Math.abs(box.top - line) < 4);
    return near.reduce((best, one) => (Math.abs(one.box.left - from.left) < Math.abs(best.box.left - from.left) ? one : best)).place;
  }

  unmark() {
    for (const span of this.node.querySelectorAll(".t.here")) span.classList.remove("here");
  }

  mark(place) {
    this.unmark();
    this.here = place;
    const spans = this.node.querySelectorAll(`.t[data-i="${place}"]`);
    for (const span of spans) span.classList.add("here");
    spans[0]?.scrollIntoView({ block: "nearest" });
  }

  open(place) {
    const span = this.node.querySelector(`.t[data-i="${place}"]`);
    const token = this.tokens[place];
    if (!span || !token) return;
    span.classList.add("open");
    const closed = () => span.classList.remove("open");
    peek(span, token, this.onpick && ((other) => this.onpick(place, other)), this.warning(), closed);
  }
}

/** Show a token beside its place: its probability, the alternatives as bars, and the way on from one. */
function peek(anchor, token, onpick, warning, onclosed) {
  const panel = $("peek");
  if (panel.matches(":popover-open")) panel.hidePopover();
  const all = token.top.some((one) => one.id === token.id) ? token.top : [...token.top, token];
  const rest = Math.max(0, 1 - all.reduce((sum, one) => sum + one.p, 0));
  let chosen = onpick ? all.find((one) => one.id !== token.id) : null;

  const go = h("button", { class: "button primary wide", type: "button", onclick: () => finish() });
  const finish = () => {
    panel.hidePopover();
    onpick(chosen);
  };
  const label = () => {
    go.replaceChildren("Continue from here with ", h("code", {}, visible(chosen.text)), " instead");
    go.setAttribute("aria-label", `Continue from here with ${visible(chosen.text)} instead`);
    for (const row of panel.querySelectorAll("button.option")) row.setAttribute("aria-pressed", row.option === chosen);
  };
  const rows = all.map((one) => {
    const mine = one.id === token.id;
    const row = h("button", {
        class: `option${mine ? " mine" : ""}`, type: "button", disabled: mine || !onpick,
        onclick: () => ((chosen = one), label()),
        ondblclick: () => ((chosen = one), finish()),
      },
      bar(one.p), h("code", {}, visible(one.text)), h("span", { class: "number" }, percent(one.p)));
    row.option = one;
    return h("li", {}, row);
  });
  if (rest > 0.0005)
    rows.push(h("li", { class: "option rest" }, bar(rest), h("span", {}, "all others"), h("span", { class: "number" }, percent(rest))));

  panel.replaceChildren(
    h("div", { class: "peek-head" }, h("code", {}, visible(token.text)), h("strong", {}, percent(token.p))),
    h("p", { class: "quiet" }, "What the model thought likely here, before temperature and top-p."),
    h("ul", { class: "options" }, rows),
    chosen ? go : "",
    chosen && warning ? h("p", { class: "quiet" }, warning) : "",
  );
  if (chosen) label();
  panel.ontoggle = (event) => {
    if (event.newState !== "closed") return;
    onclosed();
    anchor.closest(".written")?.focus({ preventScroll: true });
  };
  if (innerWidth <= 720) anchor.scrollIntoView({ block: "start" }); // the sheet comes from below
  panel.style.setProperty("--high", "none");
  panel.showPopover();
  beside(panel, anchor.getClientRects()[0] ?? anchor.getBoundingClientRect());
  panel.querySelector(".option:not([disabled])")?.focus({ preventScroll: true });
}

/** A probability as a bar behind its row. */
export function bar(p) {
  const node = h("span", { class: "fill", "aria-hidden": "true" });
  node.style.setProperty("--p", p.toFixed(4));
  return node;
}

/** Under its token or over it, where there is more room, and never on it; a narrow screen has its own place for it. */
export function beside(panel, box) {
  const [under, over] = [innerHeight - box.bottom - 20, box.top - 20];
  const below = under >= Math.min(panel.offsetHeight, over);
  panel.style.setProperty("--high", `${Math.max(120, below ? under : over)}px`);
  const { offsetWidth: width, offsetHeight: height } = panel;
  const left = Math.max(12, Math.min(box.left - 16, innerWidth - width - 12));
  panel.style.setProperty("--x", `${left}px`);
  panel.style.setProperty("--y", `${below ? box.bottom + 8 : Math.max(12, box.top - height - 8)}px`);
}
