// Classify: the classes of a text as bars, and the probability below which it is none of them.

import { post } from "./api.js";
import { SHORTCUT, announce, count, growing, h, percent, showError } from "./dom.js";
import * as store from "./store.js";
import { bar } from "./tokens.js";

export class Classify {
  constructor(panel) {
    this.model = null;
    this.working = false;
    this.text = h("textarea", {
      class: "writing", id: "text", rows: 5, dir: "auto", placeholder: "Which class does this text belong to?",
      oninput: () => (store.write("draft.classify", this.text.value), this.ready()),
      onkeydown: (event) => {
        if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) (event.preventDefault(), this.pressed());
      },
    });
    this.text.value = store.read("draft.classify", "");
    growing(this.text);
    this.button = h("button", { class: "button primary", type: "submit" }, "Classify");
    this.limit = h("input", { id: "reject", type: "range", min: 0, max: 1, step: 0.01, oninput: () => this.turn() });
    this.limit.value = store.settings.threshold;
    this.shown = h("output", { for: "reject", class: "number" });
    this.result = h("div", { class: "result" });
    panel.append(
      h("form", { class: "desk", onsubmit: (event) => (event.preventDefault(), this.pressed()) },
        h("label", { class: "desk-label", for: "text" }, "Text"),
        h("div", { class: "sheet tall" }, this.text),
        h("div", { class: "desk-foot" }, this.button, h("span", { class: "quiet only-wide" }, SHORTCUT),
          h("label", { class: "threshold", for: "reject", title: "Where even the likeliest class is less likely than this, the text counts as none of them" }, "None of them below", this.limit, this.shown)),
        this.result));
    this.last = store.read("classification", null); // { text, probabilities: [[label, p]] }
    this.turn();
    this.ready();
  }

  use(model) {
    this.model = model;
    this.show();
    this.ready();
  }

  ready() {
    this.button.disabled = this.working || !this.model || !this.text.value.trim();
  }

  stop() {}

  /** The threshold decides here what the server would: the probabilities are all there. */
  turn() {
    const limit = Number(this.limit.value);
    store.set("threshold", limit);
    this.shown.textContent = `${Math.round(100 * limit)} %`;
    this.show();
  }

  show() {
    if (!this.last) {
      const { labels } = this.model ?? {};
      const known = labels?.length ? `It tells ${count(labels.length, "class", "classes")} apart: ${labels.join(", ")}.` : "";
      return this.result.replaceChildren(h("p", { class: "quiet" }, known));
    }
    const limit = store.settings.threshold;
    const [surest, confidence] = this.last.probabilities[0];
    const rejected = confidence < limit;
    const verdict = rejected ? "None of the classes" : surest;
    const reason = rejected
      ? `Rejected: the surest is ${surest} at ${percent(confidence)}, and you ask for ${Math.round(100 * limit)} %.`
      : `${percent(confidence)} sure.`;
    const rows = this.last.probabilities.map(([label, p], i) =>
      h("li", { class: `class-row${i === 0 && !rejected ? " chosen" : ""}` },
        h("span", { class: "class-name" }, label), h("span", { class: "class-bar" }, bar(p)), h("span", { class: "number" }, percent(p))));
    const list = h("ul", { class: "classes" }, rows);
    list.style.setProperty("--limit", limit);
    this.result.replaceChildren(
      h("h2", { class: "verdict", "data-rejected": rejected }, verdict),
      h("p", { class: "quiet" }, reason, " “", this.last.text.length > 120 ? `${this.last.text.slice(0, 120)}…` : this.last.text, "”"),
      list);
    announce(`${verdict}. ${reason}`);
  }

  async pressed() {
    const text = this.text.value.trim();
    if (this.working || !this.model || !text) return;
    this.working = true;
    this.ready();
    showError("");
    try {
      const { classifications } = await post("/classify", { model: this.model.id, text });
      const probabilities = Object.entries(classifications[0].probabilities).sort((a, b) => b[1] - a[1]);
      this.last = { text, probabilities };
      store.write("classification", this.last);
      this.show();
    } catch (error) {
      showError(error.message);
    }
    this.working = false;
    this.ready();
  }
}
