// A look inside: one answer replayed by the plain model, and what its layers and heads did. Loaded when it is opened.
//
// The server keeps nothing of an answer: what was asked and written goes along with every request. What stands here first comes of one pass over
// it, each other view of one more. Token text only ever becomes text nodes. Read next: look_parts.js, terms.js, server/look.py.

import { post } from "./api.js";
import { $, announce, count, h, icon, later, percent, visible } from "./dom.js";
import { Heads, Tokens, drawn, openness, say } from "./look_parts.js";
import { MEANINGS, PLAINLY, term } from "./terms.js";

const KINDS = { self: "among the words written", cross: "from the words written to the source", encoder: "within the source" };
const FIRST = 160; // tokens of a long prompt that are shown at once, the last ones

/** Open the panel for an answer: { model, title, asked, from }, `asked` as /look takes it, `from` what had the focus. */
export async function open(answer) {
  if (!document.querySelector("link[href='/page/look.css']")) {
    const sheet = h("link", { rel: "stylesheet", href: "/page/look.css" });
    const ready = new Promise((resolve) => (sheet.onload = sheet.onerror = resolve));
    document.head.append(sheet);
    await ready;
  }
  const aside = $("insight");
  aside.look?.leave();
  aside.look = new Look(aside, answer);
  await aside.look.start();
}

class Look {
  constructor(aside, answer) {
    this.aside = aside;
    this.answer = answer;
    this.gone = new AbortController();
    this.here = null; // the token that is looked from
    this.head = null; // { layer, head }
    this.kept = new Map(); // views that were asked for already
    const close = h("button", { class: "icon-button", "aria-label": "Close", onclick: () => this.close() }, icon("close"));
    this.state = h("p", { class: "look-note" }, "Reading it once more …");
    this.rest = h("div", { class: "look-views" });
    aside.replaceChildren(h("div", { class: "look-head" }, h("div", {}, h("h2", {}, "Inside the answer"), h("p", { class: "quiet" }, answer.title)), close),
      this.state, this.rest);
    aside.hidden = false;
    aside.onkeydown = (event) => {
      if (event.key !== "Escape" || document.querySelector(":popover-open")) return;
      event.stopPropagation();
      this.close();
    };
    close.focus({ preventScroll: true });
  }

  leave() {
    this.gone.abort();
  }

  close() {
    this.leave();
    this.aside.hidden = true;
    this.aside.replaceChildren();
    this.answer.from?.focus?.();
  }

  /** One view of the answer; asked for once, unless it came with another one. */
  view(name, more = {}, found = null) {
    const key = JSON.stringify([name, more]);
    if (found) this.kept.set(key, found);
    if (!this.kept.has(key)) {
      const wanted = post("/look", { ...this.answer.asked, view: name, ...more }, this.gone.signal);
      this.kept.set(key, wanted);
      wanted.catch(() => this.kept.delete(key));
    }
    return this.kept.get(key);
  }

  /** Do what asks the server; what goes wrong is said in `place`. */
  async in(place, work) {
    place.toggleAttribute("data-waiting", true);
    try {
      await work();
    } catch (error) {
      if (error.name !== "AbortError") place.replaceChildren(h("p", { class: "look-refused", role: "alert" }, error.message));
    }
    place.toggleAttribute("data-waiting", false);
  }

  async start() {
    await this.in(this.state, async () => {
      const { heads, attention, ...tokens } = await this.view("opening");
      this.first = tokens;
      if (heads) this.view("heads", { kind: heads.kind }, heads);
      if (attention) this.view("attention", { layer: attention.layer, head: attention.head, kind: attention.kind }, attention);
      this.agreement();
      this.build();
      this.select(this.telling());
      if (this.first.n_heads) await this.heads();
    });
  }

  /** The token to begin with: of the words of the answer, the one of which the model was least sure. */
  telling() {
    const { tokens } = this.first;
    const words = tokens.map((_, i) => i).filter((i) => tokens[i].answer && tokens[i].logprob !== null && /\p{L}/u.test(tokens[i].text));
    return words.length ? words.reduce((least, i) => (tokens[i].logprob < tokens[least].logprob ? i : least)) : tokens.length - 1;
  }

  /** What the replay was, and whether it is what was served. */
  agreement() {
    const { n_tokens: n, n_left_out: rest, seconds, replay } = this.first;
    const took = seconds < 1 ? `${Math.max(1, Math.round(1000 * seconds))} ms` : `${seconds.toFixed(1)} s`;
    const cut = rest ? ` The last ${count(rest, "token")} of the answer ${rest === 1 ? "is" : "are"} left out; a server started with a higher --limits.look-tokens reads them too.` : "";
    this.state.replaceChildren(`The model read it once more, ${count(n, "token")} in ${took}. ${replay.text}${cut}`);
    this.state.toggleAttribute("data-differs", replay.agrees === false);
  }

  build() {
    const { tokens } = this.first;
    const skip = Math.max(0, this.first.n_prompt - FIRST);
    this.strip = new Tokens(tokens, skip, { onhover: (i) => this.show(i), onleave: () => this.show(this.here), onpick: (i) => this.select(i) });
    this.readout = h("div", { class: "look-readout", "aria-live": "polite" });
    this.chosen = h("div", { class: "look-chosen" });
    this.outcome = h("section", { class: "look-outcome" });
    this.rest.replaceChildren(
      h("section", { class: "look-view" },
        h("h3", {}, "Tokens"),
        h("p", { class: "look-key" }, ...PLAINLY.tokens(), this.first.n_heads ? " The light shows from where the chosen head took something when the marked token was still to be written." : ""),
        say(this.first.caveat)),
      // In sight while the heads and the other views are gone through: all of them speak of these tokens.
      h("section", { class: "look-held" }, this.strip.node, this.readout, this.chosen),
      this.outcome,
      this.first.n_heads ? this.headsView() : "",
      ...this.first.sides.map((side) => this.folded(side)));
  }

  /** A view that is asked for when it is opened, and again when another token is marked. */
  folded({ name, title, of }) {
    const place = h("div", { class: "look-body" });
    const plainly = PLAINLY[name] && h("p", { class: "look-key" }, ...PLAINLY[name]());
    const node = h("details", { class: "look-view", "data-view": name }, h("summary", {}, h("h3", {}, title)), plainly, place);
    node.redraw = later(() => node.open && this.in(place, () => this.side(name, of, place)), 60);
    node.addEventListener("toggle", () => node.open && node.redraw());
    return node;
  }

  select(i) {
    this.here = i;
    this.strip.mark(i);
    this.show(i);
    for (const node of this.rest.querySelectorAll("details[data-view]")) node.redraw();
  }

  /** Say everything about token i, and light what the chosen head looks at from there. */
  show(i) {
    if (i === null || i === undefined) return;
    const token = this.first.tokens[i];
    const row = this.rows?.rows[this.reader(i)];
    const facts = token.logprob === null ? ["the first token: nothing was expected of it"]
      : [`${percent(Math.exp(token.logprob))} · `, term(`rank ${token.rank.toLocaleString("en")}`, MEANINGS.rank), " · ", openness(token.entropy, "before it was written")];
    const lines = [h("p", {}, h("code", {}, visible(token.text)), h("span", {}, ...facts))];
    if (token.top) lines.push(h("p", { class: "quiet" }, "Likeliest there: ", token.top.map((one) => [h("code", {}, visible(one.text)), ` ${percent(one.p)} `])));
    if (row) lines.push(this.keys(row, i));
    this.readout.replaceChildren(...lines);
    this.strip.light(row ?? null, row ? this.sink(this.reader(i)) : null);
    this.strip.from(i);
  }

  /** Where the chosen head read when token i was still to be written: in a decoder at the one before it. */
  reader(i) {
    return this.rows?.kind === "encoder" ? i : i - 1;
  }

  keys(row, i) {
    const apart = this.sink(this.reader(i));
    const others = row.keys.map((key, at) => [key, row.weights[at]]).filter(([key]) => key !== apart).slice(0, 4);
    const rest = apart === null ? -1 : row.keys.indexOf(apart);
    return h("p", { class: "quiet" }, `Layer ${this.rows.layer}, head ${this.rows.head} ${this.rows.kind === "encoder" ? "takes" : "took, when it was to be written,"} from `,
      others.map(([key, weight]) => [h("code", {}, visible(this.first.tokens[key].text)), ` ${percent(weight)}  `]),
      rest >= 0 ? h("span", { class: "look-sink" }, term("first token", MEANINGS.sink), ` ${percent(row.weights[rest])}`) : "");
  }

  /** The first token as a resting place, which stands apart; null where it is the text itself that is weighed. */
  sink(i) {
    return this.rows.kind === "cross" || i === this.rows.sink ? null : this.rows.sink;
  }

  // Heads

  headsView() {
    this.grid = new Heads({ onpick: (layer, head) => this.pick(layer, head) });
    this.headsPlace = h("div", { class: "look-body" });
    this.caveat = h("div", {});
    const { kinds } = this.first;
    this.kind = kinds[0];
    const kind = kinds.length > 1 && h("label", { class: "look-order" }, "Attention ",
      h("select", { onchange: (event) => ((this.kind = event.target.value), this.heads()) }, kinds.map((name) => h("option", { value: name }, KINDS[name]))));
    return h("section", { class: "look-view", "data-view": "heads" }, h("h3", {}, "Heads"), h("p", { class: "look-key" }, ...PLAINLY.heads(this.first)), kind, this.headsPlace, this.caveat);
  }

  heads() {
    return this.in(this.headsPlace, async () => {
      const heads = await this.view("heads", { kind: this.kind });
      this.headsPlace.replaceChildren(this.grid.node);
      this.grid.show(heads);
      const [layer, head] = this.grid.first();
      await this.pick(layer, head);
    });
  }

  async pick(layer, head) {
    this.head = { layer, head };
    this.grid.mark(layer, head);
    await this.in(this.chosen, async () => {
      const rows = await this.view("attention", { layer, head, kind: this.kind });
      if (this.head.layer !== layer || this.head.head !== head) return; // another one was chosen meanwhile
      this.rows = rows;
      const result = h("div", { class: "look-result", "aria-live": "polite" });
      const off = this.kind === "self" && h("p", {},
        h("button", { class: "button", type: "button", onclick: () => this.ablate(layer, head, result) }, "Ablate this head"), " ", term("What is that?", MEANINGS.ablate));
      this.chosen.replaceChildren(
        h("p", { class: "look-facts" }, h("strong", {}, `Layer ${layer}, head ${head}`), " ", ...this.grid.describe(layer, head)),
        ...[off].filter(Boolean));
      this.outcome.replaceChildren(result);
      this.caveat.replaceChildren(h("p", { class: "quiet" }, rows.check), say(rows.caveat));
      this.show(this.here);
    });
  }

  ablate(layer, head, result) {
    result.replaceChildren(h("p", { class: "quiet" }, "Reading it once more without this head …"));
    return this.in(result, async () => {
      const [picture] = (await this.view("ablate", { layer, head })).pictures;
      result.replaceChildren(h("p", { class: "look-change" }, picture.finding), ...drawn({ ...picture, finding: "" }));
      announce(picture.finding);
    });
  }

  /** What insight has drawn: of the marked token, or of all. */
  async side(name, of, place) {
    const at = this.here;
    const { pictures } = await this.view(name, of === "token" ? { token: at } : {});
    if (at !== this.here) return;
    place.replaceChildren(...pictures.flatMap((picture, i) => [...(i ? [h("h4", {}, picture.title)] : []), ...drawn(picture)]));
  }
}
