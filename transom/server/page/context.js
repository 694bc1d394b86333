// What the model still reads of a conversation, counted by the server's own tokenizer.
//
// The system text and the newest turns are kept; the oldest turns are dropped whole, and that is said. The
// same rule as in the terminal.

import { post } from "./api.js";
import { count, h } from "./dom.js";

/** Room for an answer where nobody set one. */
export const roomFor = (model, maxTokens) => maxTokens ?? Math.min(256, Math.floor(model.max_len / 4));

/**
 * The newest turns that fit: { first, nTokens, room, limit, fits }. `said` are the user's and the assistant's
 * messages in turn, `head` the system message or nothing; `first` is the place of the first message kept.
 */
export async function fitting(model, head, said, room, signal) {
  const starts = said.flatMap((message, place) => (message.role === "user" ? [place] : []));
  const size = async (start) =>
    (await post("/tokenize", { model: model.id, messages: [...head, ...said.slice(start)] }, signal)).n_tokens;
  const limit = model.max_len;
  const answer = (first, nTokens) => ({ first, nTokens, room, limit, fits: nTokens + room <= limit });
  if (!starts.length) return answer(0, head.length ? await size(0) : 0);
  let low = 0;
  let high = starts.length - 1;
  const whole = await size(starts[0]);
  if (whole + room <= limit || high === 0) return answer(starts[0], whole);
  let nTokens = null;
  low = 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    const n = await size(starts[middle]);
    if (n + room <= limit) [high, nTokens] = [middle, n];
    else low = middle + 1;
  }
  return answer(starts[low], nTokens ?? (await size(starts[low])));
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
    const dropped = first ? h("strong", {}, `the oldest ${number(first)} dropped`) : "none dropped";
    const free = fits ? `${number(room)} more are free for the answer` : "too long to send";
    this.words.replaceChildren(
      h("span", {}, `${number(nTokens)} of ${number(limit)} tokens, ${free}`),
      h("span", {}, nSaid ? [`${count(nSaid - first, "message")} kept, `, dropped] : "Nothing said yet"),
    );
  }

  hide() {
    this.words.replaceChildren();
    this.track.style.setProperty("--read", 0);
    this.track.style.setProperty("--reserved", 0);
  }
}
