// Complete: a text, and how the model goes on with it. What it writes can be branched and taken over.

import { SHORTCUT, action, announce, copy, growing, h, showError } from "./dom.js";
import { COMPLETION, branch, ending, lookInside, sampling, stream, written as ofTokens } from "./answer.js";
import { tintSwitch } from "./settings.js";
import * as store from "./store.js";
import { served } from "./served.js";
import { Written } from "./tokens.js";

export class Complete {
  constructor(panel) {
    this.model = null;
    this.writing = null;
    this.prompt = h("textarea", {
      class: "writing", rows: 6, id: "prompt", dir: "auto", spellcheck: "false", placeholder: "Begin a text; the model goes on with it.",
      oninput: () => (store.write("draft.complete", this.prompt.value), this.ready()),
      onkeydown: (event) => {
        if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) (event.preventDefault(), this.pressed());
      },
    });
    this.prompt.value = store.read("draft.complete", "");
    this.fit = growing(this.prompt);
    this.button = h("button", { class: "button primary", type: "submit" }, "Complete");
    this.result = h("div", { class: "result", "aria-live": "off" });
    panel.append(
      h("form", { class: "desk", onsubmit: (event) => (event.preventDefault(), this.pressed()) },
        h("label", { class: "desk-label", for: "prompt" }, "Beginning"),
        h("div", { class: "sheet tall" }, this.prompt),
        h("div", { class: "desk-foot" }, this.button, h("span", { class: "quiet only-wide" }, SHORTCUT), tintSwitch()),
        this.result));
    this.last = store.read("completion", null); // { prompt, version }
    if (this.last) this.show();
    this.ready();
  }

  use(model) {
    this.model = model;
    this.ready();
  }

  ready() {
    this.button.textContent = this.writing ? "Stop" : "Complete";
    this.button.disabled = !this.writing && (!this.model || !this.prompt.value);
  }

  stop() {
    this.writing?.abort();
  }

  pressed() {
    if (this.writing) return this.stop();
    if (this.model && this.prompt.value) this.write(this.prompt.value);
  }

  /** What was written, as it stands. */
  show() {
    const { prompt, version } = this.last;
    const before = h("span", { class: "before" }, prompt.length > 400 ? `… ${prompt.slice(-400)}` : prompt);
    const writer = served(version.asked);
    this.written = new Written({
      markdown: false,
      onpick: writer && ((place, other) => this.branch(place, other)),
      warning: () => (writer ? "" : `Written by ${version.model}, which is not served now.`),
    });
    this.written.update(version.text, version.tokens);
    this.foot = h("div", { class: "actions shown" });
    this.result.replaceChildren(
      h("h2", { class: "desk-label" }, "How it goes on"),
      h("div", { class: "sheet tall out" }, before, this.written.node), this.foot);
    this.settle();
  }

  settle() {
    const { prompt, version } = this.last;
    const note = ending(version.finish, version.tokens.length);
    this.foot.replaceChildren(
      ...(this.writing ? [] : [
        action("Copy", (event) => copy(prompt + version.text, event.target)),
        version.tokens.length && version.asked ? action("Look inside", () => this.look()) : "",
        action("Again", () => this.write(prompt)),
        action("Take it into the beginning", () => this.take()),
        note ? h("span", { class: "quiet" }, note) : "",
      ]));
  }

  take() {
    this.prompt.value = this.last.prompt + this.last.version.text;
    this.prompt.dispatchEvent(new Event("input"));
    this.prompt.focus();
    this.prompt.setSelectionRange(this.prompt.value.length, this.prompt.value.length);
  }

  look() {
    const { prompt, version } = this.last;
    return lookInside({ title: version.model, asked: { model: version.asked, prompt, ...ofTokens(version) } });
  }

  branch(place, other) {
    const { prompt, version } = this.last;
    const way = branch(version, place, other, this.written.starts);
    return this.write(prompt, way.version, way.prefix, served(version.asked));
  }

  async write(prompt, version = { text: "", tokens: [] }, prefix = [], model = this.model) {
    if (this.writing || !model) return;
    const controller = new AbortController();
    this.writing = controller;
    showError("");
    const body = { ...sampling(model), ...COMPLETION.fields, prompt };
    if (prefix.length) body.prefix_tokens = prefix;
    Object.assign(version, { model: model.name, asked: model.id, seed: body.seed, finish: null });
    const before = this.last;
    this.last = { prompt, version };
    this.ready();
    this.show();
    let wanted = false;
    const paint = () => {
      if (wanted) return;
      wanted = true;
      requestAnimationFrame(() => {
        wanted = false;
        this.written.update(version.text, version.tokens);
      });
    };
    try {
      await stream("/v1/completions", body, version, COMPLETION, paint, controller.signal);
      announce("The completion is complete.");
    } catch (error) {
      version.finish = error.name === "AbortError" ? "stopped" : "error";
      if (error.name !== "AbortError") showError(error.message);
    }
    this.writing = null;
    if (!version.text && version.finish === "error") this.last = before;
    store.write("completion", this.last);
    if (this.last) this.show();
    else this.result.replaceChildren();
    this.ready();
  }
}
