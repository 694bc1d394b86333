// Translate: source and target side by side, line by line.

import { get, post } from "./api.js";
import { SHORTCUT, action, announce, copy, count, growing, h, showError } from "./dom.js";
import { lookInside } from "./answer.js";
import * as store from "./store.js";

const BEAMS = [1, 2, 4, 8];

export class Translate {
  constructor(panel) {
    this.model = null;
    this.working = null;
    this.source = h("textarea", {
      class: "writing", id: "source", rows: 8, dir: "auto", placeholder: "What shall be translated?",
      oninput: () => (store.write("draft.translate", this.source.value), this.ready()),
      onkeydown: (event) => {
        if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) (event.preventDefault(), this.pressed());
      },
    });
    this.source.value = store.read("draft.translate", "");
    growing(this.source);
    this.target = h("div", { class: "target", id: "target" });
    this.foot = h("div", { class: "actions shown" });
    this.button = h("button", { class: "button primary", type: "submit" });
    panel.append(
      h("form", { class: "desk wide", onsubmit: (event) => (event.preventDefault(), this.pressed()) },
        h("div", { class: "pair" },
          h("div", { class: "side" },
            h("label", { class: "desk-label", for: "source" }, "Text to translate"),
            h("div", { class: "sheet tall" }, this.source),
            h("div", { class: "actions shown" }, action("Clear", () => this.clear()))),
          h("section", { class: "side", "aria-label": "Translation" },
            h("h2", { class: "desk-label" }, "Translation"), h("div", { class: "sheet out" }, this.target), this.foot)),
        h("div", { class: "desk-foot" }, this.button, h("span", { class: "quiet only-wide" }, SHORTCUT), this.beams())));
    this.last = store.read("translation", null); // [{ text, finished }], one for each line of the source
    this.show();
    this.ready();
  }

  beams() {
    this.widths = BEAMS.map((beam) =>
      h("input", { type: "radio", name: "beam", value: beam, onchange: () => store.set("beam", beam) }));
    const choice = this.widths.map((input) => h("label", {}, input, h("span", {}, input.value)));
    return h("fieldset", { class: "choice", title: "How many beginnings are kept at every step; 1 is greedy" },
      h("legend", {}, "Beams"), choice);
  }

  use(model) {
    this.model = model;
    const beam = store.settings.beam ?? model?.beam;
    for (const input of this.widths) input.checked = Number(input.value) === beam;
    this.ready();
    if (model && !this.last) this.example(model);
  }

  /** Offer a text of the kind that the model learned from, where its run has written one down. */
  async example(model) {
    const { run } = await get(`/props?model=${encodeURIComponent(model.id)}`);
    const text = run?.data?.example;
    if (typeof text !== "string" || this.last || this.model !== model) return;
    const take = () => {
      this.source.value = text;
      this.source.dispatchEvent(new Event("input"));
      this.pressed();
    };
    this.target.replaceChildren(
      h("p", { class: "quiet" }, "The translation comes here. A text of the kind that it learned from:"), action(text, take, { class: "button", dir: "auto" }));
  }

  ready() {
    this.button.textContent = this.working ? "Stop" : "Translate";
    this.button.disabled = !this.working && (!this.model || !this.source.value.trim());
    this.target.toggleAttribute("data-writing", Boolean(this.working));
  }

  stop() {
    this.working?.abort();
  }

  clear() {
    this.source.value = "";
    this.source.dispatchEvent(new Event("input"));
    this.source.focus();
  }

  show() {
    const lines = this.last ?? [];
    this.target.replaceChildren(
      ...(this.last ? lines.map((line) => this.line(line)) : [h("p", { class: "quiet" }, "The translation comes here.")]));
    const whole = lines.map(({ text }) => text).join("\n");
    const cut = lines.filter(({ finished }) => !finished).length;
    this.foot.replaceChildren(
      whole ? action("Copy", (event) => copy(whole, event.target)) : "",
      cut ? h("span", { class: "quiet" }, `${count(cut, "line")} cut at the model's longest length; give shorter ones.`) : "");
  }

  line({ text, source, tokens, logprob, asked }) {
    const look = () => lookInside({ title: asked, asked: { model: asked, source, answer: tokens, logprob } });
    const words = h("p", { class: "line", dir: "auto" }, text);
    return tokens?.length && asked ? h("div", { class: "with-look" }, words, action("Look inside", look, { class: "action line-look" })) : words;
  }

  async pressed() {
    if (this.working) return this.stop();
    if (!this.model || !this.source.value.trim()) return;
    const lines = this.source.value.trim().split("\n");
    this.working = new AbortController();
    this.ready();
    showError("");
    try {
      const body = { model: this.model.id, text: lines.filter((line) => line.trim()), beam: store.settings.beam };
      const { translations } = await post("/translate", body, this.working.signal);
      let next = 0;
      this.last = lines.map((line) =>
        line.trim() ? { ...translations[next++], source: line, asked: body.model } : { text: "", finished: true });
      store.write("translation", this.last);
      this.show();
      announce("The translation is there.");
    } catch (error) {
      if (error.name !== "AbortError") showError(error.message);
    }
    this.working = null;
    this.ready();
  }
}
