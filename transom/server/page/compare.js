// Compare: two models side by side on one prompt, each taking the likeliest token, and the first one where they part.

import { SHORTCUT, announce, count, growing, h, percent, showError, visible } from "./dom.js";
import { CHAT, COMPLETION, ending, stream } from "./answer.js";
import { roomFor } from "./context.js";
import * as store from "./store.js";
import { Written } from "./tokens.js";

const SIDES = ["One model", "Another"];

/** Models as options, adapters below the one they go on. */
export function options(models) {
  const one = (model) => h("option", { value: model.id }, model.name);
  const bases = models.filter(({ parent }) => !models.some(({ id }) => id === parent));
  return bases.map((base) => {
    const own = models.filter(({ parent }) => parent === base.id);
    return own.length ? h("optgroup", { label: `${base.name} and its adapters` }, one(base), own.map(one)) : one(base);
  });
}

/** The first token of each version that the other did not write: its number, or none where it ended first. */
export function parting(versions, starts) {
  const [one, other] = versions.map(({ text }) => text);
  let same = 0;
  while (same < one.length && same < other.length && one[same] === other[same]) same++;
  if (same === one.length && same === other.length) return null;
  return versions.map((_, side) => {
    const place = starts[side].findIndex((start, i) => i + 1 < starts[side].length && starts[side][i + 1] > same);
    return place < 0 ? null : place;
  });
}

export class Compare {
  constructor(panel, models) {
    this.models = models;
    this.writing = null;
    this.prompt = h("textarea", {
      class: "writing compare-prompt", rows: 3, id: "compare-prompt", dir: "auto", placeholder: "What shall both be asked?",
      oninput: () => (store.write("draft.compare", this.prompt.value), this.ready()),
      onkeydown: (event) => {
        if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) (event.preventDefault(), this.pressed());
      },
    });
    this.prompt.value = store.read("draft.compare", "");
    this.fit = growing(this.prompt);
    this.button = h("button", { class: "button primary", type: "submit" });
    this.pickers = SIDES.map((label, side) => h("select", { "aria-label": label, onchange: () => this.picked(side) }, options(models)));
    this.sides = this.pickers.map((picker, side) => ({
      sheet: h("div", { class: "sheet out" }), foot: h("p", { class: "quiet" }),
      node: h("section", { class: "side", "aria-label": SIDES[side] }),
      picker,
    }));
    for (const { node, picker, sheet, foot } of this.sides) node.append(h("label", { class: "model" }, picker), sheet, foot);
    this.verdict = h("p", { class: "parting", role: "status" });
    panel.append(
      h("form", { class: "desk wide", onsubmit: (event) => (event.preventDefault(), this.pressed()) },
        h("label", { class: "desk-label", for: "compare-prompt" }, "Prompt"),
        h("div", { class: "sheet tall" }, this.prompt),
        h("div", { class: "desk-foot" }, this.button, h("span", { class: "quiet only-wide" }, SHORTCUT),
          h("span", { class: "quiet" }, "Each takes the likeliest token; where two are nearly as likely, rounding may choose.")),
        this.verdict, h("div", { class: "pair" }, this.sides.map(({ node }) => node))));
    const base = models.find((model) => models.some(({ parent }) => parent === model.id)) ?? models[0];
    const other = models.find(({ parent }) => parent === base.id) ?? models.find((model) => model !== base);
    [base, other].forEach((model, side) => {
      const last = store.read(`model.compare.${side}`, null);
      this.pickers[side].value = (models.find(({ id }) => id === last) ?? model).id;
    });
    this.clear();
    this.ready();
  }

  /** Its models are chosen above their answers, not in the bar. */
  use() {
    this.fit();
    this.ready();
  }

  picked(side) {
    store.write(`model.compare.${side}`, this.pickers[side].value);
    this.stop();
    this.clear();
  }

  clear() {
    this.verdict.replaceChildren();
    for (const { sheet, foot } of this.sides) (sheet.replaceChildren(), foot.replaceChildren());
  }

  ready() {
    this.button.textContent = this.writing ? "Stop" : "Ask both";
    this.button.disabled = !this.writing && !this.prompt.value.trim();
    for (const { sheet } of this.sides) sheet.toggleAttribute("data-writing", Boolean(this.writing));
  }

  stop() {
    this.writing?.abort();
  }

  pressed() {
    if (this.writing) return this.stop();
    if (this.prompt.value.trim()) this.ask(this.prompt.value);
  }

  /** What one model is asked: as a chat where both chat, else to go on with the text. */
  asked(model, prompt, chat) {
    const { maxTokens, system } = store.settings;
    const body = { model: model.id, stream: true, temperature: 0, max_tokens: roomFor(model, maxTokens) };
    if (!chat) return { ...body, ...COMPLETION.fields, prompt };
    const head = system.trim() ? [{ role: "system", content: system.trim() }] : [];
    return { ...body, ...CHAT.fields, messages: [...head, { role: "user", content: prompt }] };
  }

  async ask(prompt) {
    const controller = new AbortController();
    this.writing = controller;
    showError("");
    this.clear();
    this.ready();
    const models = this.pickers.map(({ value }) => this.models.find(({ id }) => id === value));
    const chat = models.every((model) => model.chat);
    const written = models.map(() => new Written({ markdown: false }));
    const versions = models.map((model) => ({ model: model.name, text: "", tokens: [], finish: null }));
    this.sides.forEach(({ sheet }, side) => sheet.replaceChildren(written[side].node));
    const one = async (side) => {
      const [path, kind] = chat ? ["/v1/chat/completions", CHAT] : ["/v1/completions", COMPLETION];
      const body = this.asked(models[side], prompt, chat);
      const version = versions[side];
      try {
        await stream(path, body, version, kind, () => written[side].update(version.text, version.tokens), controller.signal);
      } catch (error) {
        version.finish = error.name === "AbortError" ? "stopped" : "error";
        if (error.name !== "AbortError") showError(error.message);
      }
      written[side].update(version.text, version.tokens);
      this.sides[side].foot.textContent = [count(version.tokens.length, "token"), ending(version.finish, version.tokens.length)].filter(Boolean).join(". ");
    };
    await Promise.all([one(0), one(1)]);
    if (this.writing !== controller) return;
    this.writing = null;
    this.part(versions, written);
    this.ready();
  }

  /** Mark the first token where the two part, and say it. */
  part(versions, written) {
    if (versions.some(({ finish }) => finish === "error")) return;
    const places = parting(versions, written.map(({ starts }) => starts));
    if (!places) {
      this.verdict.textContent = `The same, to the last of ${count(versions[0].tokens.length, "token")}.`;
      return announce(this.verdict.textContent);
    }
    const wrote = versions.map(({ model, tokens, text }, side) => {
      const place = places[side];
      if (place === null) return [h("b", {}, model), text ? " ends there" : " writes nothing"];
      for (const span of written[side].node.querySelectorAll(`.t[data-i="${place}"]`)) span.classList.add("parts");
      const theirs = versions[1 - side].tokens[places[1 - side] ?? -1];
      const other = theirs && tokens[place].top.find(({ text: name }) => name === theirs.text);
      return [h("b", {}, model), " writes ", h("code", {}, visible(tokens[place].text)), ` (${percent(tokens[place].p)}`,
        other ? `; the other's ${percent(other.p)})` : ")"];
    });
    const place = Math.min(...places.filter((one) => one !== null)) + 1;
    this.verdict.replaceChildren(`They part at token ${place.toLocaleString("en")}: `, ...wrote[0], ", ", ...wrote[1], ".");
    announce(this.verdict.textContent);
  }
}
