// The words of a look inside, said plainly where they stand: a word is a button, its meaning opens beside it.

import { h } from "./dom.js";
import { beside } from "./tokens.js";

export const MEANINGS = {
  token: "A piece of text that the model reads and writes at a time: a word, a part of one, a single character. ␣ is a space, ↵ a new line.",
  probability: "Before each token the model gives every token of its vocabulary a probability. It says how sure the model was, not whether the text is true.",
  rank: "The token's place when all are sorted by their probability there: 1 was the model's first choice.",
  layer: "A model works in layers, one after the other. Each reads what the last one left for every token, and adds to it.",
  head: "The part of a layer by which a token takes something from other tokens. It says from where something was taken, not that it mattered; to see that, ablate it.",
  sink: "A head that has nothing to take rests on the first token of the text. Weight there is read as “nothing here”, so it is shown in grey.",
  ablate: "To ablate a head is to take it away: what it says is replaced by its average, and the model reads the answer again. If the answer is as likely as before, this head did not matter here, or others made up for it.",
  nats: "The unit in which changes of probability add up: 0.69 nats less is half as likely, 2.3 nats less a tenth.",
};

/** A word with its meaning behind it. */
export function term(word, meaning) {
  return h("button", { type: "button", class: "term", onclick: (event) => explain(event.currentTarget, meaning) }, word);
}

const note = h("div", { class: "peek meaning", popover: "auto", role: "note" });

function explain(word, meaning) {
  if (note.matches(":popover-open")) note.hidePopover();
  document.body.append(note);
  note.replaceChildren(h("p", {}, meaning));
  note.showPopover();
  beside(note, word.getBoundingClientRect());
  document.getElementById("live").textContent = meaning;
}

/** What a view shows, in plain words that need no others. */
export const PLAINLY = {
  tokens: () => ["What was read and written, cut into ", term("tokens", MEANINGS.token), ". The line under each is its ", term("probability", MEANINGS.probability),
    " just before it came. Marked first is the word of the answer of which the model was least sure. Click another: all below speaks of it."],
  heads: ({ n_layers: layers, n_heads: heads }) => ["A ", term("head", MEANINGS.head), ` takes something from other tokens for each token. There are ${heads} in each of ${layers} `, term("layers", MEANINGS.layer),
    "; a picture has a row for each token that takes and a column for each it takes from (its attention), from the beginning of the text to its end. The most telling come first: they take much from one token, and neither from the first of all nor from the one just before."],
  lens: () => ["The model works layer by layer. Each row reads one layer as if it were the last: what would it have written in place of the marked token? Where the answer appears and stays, it was settled."],
  gradient: () => ["Which of the tokens before made the marked one likely? This is estimated, and the estimate is checked by taking tokens away. Changes are in ", term("nats", MEANINGS.nats), "."],
  experts: () => ["In each layer a token goes through a few of several parts, the experts, which a router picks. Which were picked how often:"],
};
