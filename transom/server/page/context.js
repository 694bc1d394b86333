// What the model still reads of a conversation, counted by the server's own tokenizer.
//
// The system text and the newest turns are kept; the oldest turns are dropped whole, and that is said. The
// same rule as in the terminal.

import { post } from "./api.js";
import { count, h } from "./dom.js";

const MOST = 2048; // tokens of an answer that nobody bounded: a model that does not stop by itself is stopped
const ROOM = 256;

/** The longest answer, in tokens: as it was set, else to its end or what the model still reads. */
export const longest = (model, maxTokens) => Math.min(maxTokens ?? MOST, model.max_len);

/** What is kept free of old turns for an answer. */
export const roomFor = (model, maxTokens) => Math.min(longest(model, maxTokens), ROOM, Math.floor(model.max_len / 4));

/**
 * The newest turns that fit: { first, nTokens, room, limit, fits }. `said` are the user's and the assistant's
 * messages in turn, `head` the system message or nothing; `first` is the place of the first message kept, and
 * `last` the one of last time, from where it is looked for: mostly two questions to the server, however long it is.
 */
export async function fitting(model, head, said, room, signal, last = 0) {
  const starts = said.flatMap((message, place) => (message.role === "user" ? [place] : []));
  const limit = model.max_len;
  const sizes = new Map();
  const size = async (at) => {
    const messages = [...head, ...said.slice(starts[at] ?? 0)];
    if (!sizes.has(at)) sizes.set(at, (await post("/tokenize", { model: model.id, messages }, signal)).n_tokens);
    return sizes.get(at);
  };
  const fits = async (at) => (await size(at)) + room <= limit;
  if (!starts.length) return { first: 0, nTokens: head.length ? await size(0) : 0, room, limit, fits: true };
  const end = starts.length - 1;
  let at = Math.max(0, Math.min(end, starts.findIndex((start) => start >= last)));
  let step = 1;
  if (await fits(at)) while (at > 0 && (await fits(Math.max(0, at - step)))) [at, step] = [Math.max(0, at - step), 2 * step];
  else {
    while (at < end && !(await fits(Math.min(end, at + step)))) [at, step] = [Math.min(end, at + step), 2 * step];
    step = Math.min(step, end - at);
    at += step;
  }
  // `at` is kept and the turn `step` before it is not: what lies between is halved.
  for (let low = Math.max(-1, at - step), high = at; ; ) {
    if (high - low <= 1) {
      const nTokens = await size(high);
      return { first: starts[high], nTokens, room, limit, fits: nTokens + room <= limit };
    }
    const middle = (low + high) >> 1;
    if (await fits(middle)) high = middle;
    else low = middle;
  }
}

/** Messages with a note above the last of the user's, where there is a note. */
export function withNote(note, said) {
  const last = said.findLastIndex((message) => message.role === "user");
  return said.map((message, place) =>
    note && place === last ? { ...message, content: `${note}\n\n${message.content}` } : message);
}

/** What to say where even the newest message does not fit. */
export const tooLong = ({ nTokens, room, limit }) =>
  `This message makes a prompt of ${nTokens.toLocaleString("en")} tokens and ${room.toLocaleString("en")} are kept free for the answer: ` +
  `more than the ${limit.toLocaleString("en")} this model reads. Shorten it by ${count(nTokens + room - limit, "token")}` +
  (nTokens < limit ? `, or set the longest answer to ${(limit - nTokens).toLocaleString("en")}.` : ".");

const share = (part) => (part > 0 && part < 0.01 ? "< 1 %" : `${Math.round(100 * part)} %`);

/** The meter below the composer. */
export class Meter {
  constructor() {
    this.track = h("div", { class: "track", role: "meter", "aria-label": "Context", "aria-valuemin": 0 },
      h("span", { class: "read" }), h("span", { class: "reserved" }));
    this.words = h("p", { class: "meter-words" });
    this.node = h("div", { class: "meter" }, this.track, this.words);
  }

  show(kept, nSaid) {
    const { first, nTokens, room, limit, fits } = kept;
    const number = (n) => n.toLocaleString("en");
    this.track.style.setProperty("--read", Math.min(1, nTokens / limit).toFixed(4));
    this.track.style.setProperty("--reserved", Math.min(Math.max(0, 1 - nTokens / limit), room / limit).toFixed(4));
    this.track.setAttribute("aria-valuemax", limit);
    this.track.setAttribute("aria-valuenow", Math.min(nTokens, limit));
    this.node.toggleAttribute("data-over", !fits || first > 0);
    this.words.replaceChildren(
      h("span", {}, `Context: ${number(nTokens)} of ${number(limit)} tokens (${share(nTokens / limit)})${fits ? "" : ", too long to send"}`),
      first ? h("span", {}, `${count(nSaid - first, "message")} kept, `, h("strong", {}, `the oldest ${number(first)} dropped`)) : "",
    );
  }

  hide() {
    this.words.replaceChildren();
    this.track.style.setProperty("--read", 0);
    this.track.style.setProperty("--reserved", 0);
  }
}
