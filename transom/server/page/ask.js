// Ask: a question to a knowledge base, the answer with its sources, and each source at its place in the document.

import { post } from "./api.js";
import { action, announce, copy, count, growing, h, percent, showError } from "./dom.js";
import { knowledgeBases, served } from "./served.js";
import * as store from "./store.js";

/** What a sentence loses, in the model's eyes, without its source. */
function worth(nats) {
  if (nats == null) return "";
  const times = Math.exp(Math.abs(nats));
  const ratio = times < 1e6 ? Number(times.toPrecision(2)).toLocaleString("en") : "over a million";
  if (times < 1.1) return "; as likely without it";
  return `; without it the model finds the sentence ${ratio} times ${nats > 0 ? "less" : "more"} likely`;
}

export class Ask {
  constructor(panel) {
    this.working = null;
    this.question = h("textarea", {
      class: "writing short", id: "question", rows: 2, dir: "auto", placeholder: "What do you want to know?",
      oninput: () => (store.write("draft.ask", this.question.value), this.ready()),
      onkeydown: (event) => {
        if (event.key === "Enter" && !event.shiftKey && !event.isComposing) (event.preventDefault(), this.pressed());
      },
    });
    this.question.value = store.read("draft.ask", "");
    growing(this.question);
    this.base = h("select", { id: "knowledge", "aria-label": "Documents" }, knowledgeBases().map(({ id }) => h("option", { value: id }, id)));
    this.own = h("input", { type: "checkbox", id: "own-words" });
    this.button = h("button", { class: "button primary", type: "submit" });
    this.result = h("div", { class: "result", "aria-live": "polite" });
    this.words = h("label", { class: "inline", for: "own-words", title: "Otherwise the answer is sentences of the documents as they stand" }, this.own, "in the model's own words");
    panel.append(
      h("form", { class: "desk", onsubmit: (event) => (event.preventDefault(), this.pressed()) },
        h("label", { class: "desk-label", for: "question" }, "Question"),
        h("div", { class: "sheet tall" }, this.question),
        h("div", { class: "desk-foot" }, this.button, h("label", { class: "inline" }, "in ", this.base), this.words,
          h("span", { class: "quiet only-wide" }, "Enter")),
        this.result));
    this.ready();
  }

  use(model) {
    this.model = model?.chat ? model : null;
    this.words.hidden = !this.model;
    this.ready();
  }

  ready() {
    this.button.textContent = this.working ? "Stop" : "Ask";
    this.button.disabled = !this.working && !this.question.value.trim();
  }

  stop() {
    this.working?.abort();
  }

  async pressed() {
    if (this.working) return this.stop();
    const question = this.question.value.trim();
    if (!question) return;
    const body = { question, knowledge_base: this.base.value };
    if (this.model && this.own.checked) Object.assign(body, { model: this.model.id, generate: true });
    await this.ask(body, "Looking …");
  }

  async ask(body, meanwhile) {
    this.working = new AbortController();
    this.ready();
    showError("");
    this.result.replaceChildren(h("p", { class: "quiet" }, meanwhile));
    try {
      this.show(await post("/ask", body, this.working.signal), body);
    } catch (error) {
      this.result.replaceChildren();
      if (error.name !== "AbortError") showError(error.message);
    }
    this.working = null;
    this.ready();
  }

  show({ answer, abstained, reason, confidence, threshold, promise, sentences, looked_at: looked, model }, body) {
    const sources = [];
    const mark = (citation) => {
      let at = sources.findIndex((one) => one.document === citation.document && one.start === citation.start && one.end === citation.end);
      if (at < 0) at = sources.push(citation) - 1;
      return h("button", { class: "cite", type: "button", "aria-label": `Source ${at + 1}: ${citation.document}`, onclick: () => this.open(citation) }, at + 1);
    };
    const said = sentences.map(({ text, supported, citations }) =>
      h("span", { class: "said", "data-bare": !supported, title: supported ? null : "No passage carries this sentence" }, text, citations.map(mark), " "));
    const sure = `Confidence ${percent(confidence)}; below ${percent(threshold)} nothing is said.${promise ? ` ${promise}.` : ""}`;
    this.place = h("div", { class: "place" });
    const list = abstained ? looked.slice(0, 3) : sources;
    const weigh = this.model && !abstained && sources.length && !body.loo
      ? action("What is each source worth?", () => this.ask({ ...body, model: this.model.id, loo: true }, "The model reads once with, once without each source …"))
      : "";
    this.result.replaceChildren(
      h("h2", { class: "desk-label" }, abstained ? "The documents do not say" : model ? `Answer, by ${served(model)?.name ?? model}` : "Answer"),
      h("div", { class: "sheet tall out", dir: "auto" }, abstained ? `${reason[0].toUpperCase()}${reason.slice(1)}.` : said),
      h("div", { class: "actions shown" }, action("Copy", (event) => copy(answer, event.target)), weigh, abstained ? "" : h("span", { class: "quiet" }, sure)),
      list.length ? h("h2", { class: "desk-label" }, abstained ? "What was looked at" : count(list.length, "source")) : "",
      h("ol", { class: "sources" }, list.map((one, i) => h("li", {},
        h("button", { class: "action", type: "button", onclick: () => this.open(one) }, one.document),
        h("span", { class: "quiet" }, `, characters ${one.start.toLocaleString("en")} to ${one.end.toLocaleString("en")}${one.page ? `, page ${one.page}` : ""}${worth(one.loo)}`)))),
      this.place);
    announce(abstained ? "The documents do not say." : answer);
  }

  /** Show a source in its document, marked, with what stands around it. */
  async open({ document, start, end }) {
    try {
      const found = await post("/passage", { knowledge_base: this.base.value, document, start, end });
      const { before, text, after, n_characters: all } = found;
      const marked = h("mark", { tabindex: "-1" }, text);
      this.place.replaceChildren(
        h("h2", { class: "desk-label" }, found.title && found.title !== document ? `${found.title} (${document})` : document),
        h("div", { class: "sheet out document", tabindex: "0", role: "region", "aria-label": `In ${document}`, dir: "auto" },
          start > before.length ? "… " : "", before, marked, after, end + after.length < all ? " …" : ""));
      marked.scrollIntoView({ block: "center" });
      marked.focus({ preventScroll: true });
    } catch (error) {
      showError(error.message);
    }
  }
}
