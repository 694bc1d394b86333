// Chat: what was said, the answer as it is written, and the ways back (edit, regenerate, another token).
//
// Read next: conversation.js (what is said as a tree), database.js (where it is kept), message.js, context.js.

import { $, announce, composing, count, growing, h, icon, later, showError } from "./dom.js";
import { CHAT, branch, sampling, stream } from "./answer.js";
import { attachButton, takesFiles } from "./attach.js";
import { Meter, fitting, roomFor, tooLong, withNote } from "./context.js";
import { fresh, path, say, titled, turn } from "./conversation.js";
import { recall } from "./memory.js";
import { answered, empty, said, systemText, waiting } from "./message.js";
import { tintSwitch } from "./settings.js";
import { Sidebar } from "./sidebar.js";
import * as database from "./database.js";
import * as store from "./store.js";
import { served } from "./served.js";

const SAVED_EVERY = 1000; // ms, of an answer that is being written
const DRAFTS = 50; // conversations whose unsent words are kept

/** Messages as the API wants them. */
const plainly = (messages) => messages.map(({ role, text }) => ({ role, content: text }));

export class Chat {
  constructor(panel) {
    this.panel = panel;
    this.model = null;
    this.writings = new Map(); // the conversations that are being answered, each with its AbortController
    this.elsewhere = new Set(); // the ids of those that other tabs write answers in
    this.first = 0; // the first message that the model still reads
    this.conversation = fresh();
    this.recount = later(() => this.count(), 350);
    this.saving = Promise.resolve();
    this.build();
    addEventListener("pagehide", () => this.leave());
    addEventListener("popstate", () => this.openNamed());
    database.onChange((id, writing) => this.changed(id, writing));
    store.onSettings((name) => ["system", "maxTokens"].includes(name) && this.recount());
  }

  build() {
    this.thread = h("div", { class: "thread", role: "log", "aria-label": "Conversation", "aria-live": "off" });
    this.newest = h("button", { class: "newest icon-button", type: "button", "aria-label": "To the newest", title: "To the newest", hidden: true,
      onclick: () => this.bottom(true) }, icon("down"));
    this.scroller = h("div", { class: "scroller", onscroll: () => (this.newest.hidden = this.atBottom() || !this.conversation.messages.length) }, this.thread);
    this.input = h("textarea", {
      rows: 1, class: "say", dir: "auto", "aria-label": "Message", enterkeyhint: "send",
      onkeydown: (event) => this.key(event), oninput: () => this.drafted(),
    });
    this.fit = growing(this.input);
    this.button = h("button", { class: "round", type: "submit" });
    this.meter = new Meter();
    const form = h("form", { class: "composer", onsubmit: (event) => (event.preventDefault(), this.pressed()) },
      this.newest,
      h("div", { class: "sheet" }, this.input, attachButton((text) => this.insert(text)), this.button),
      h("div", { class: "composer-foot" }, this.meter.node, tintSwitch()));
    this.panel.append(this.scroller, form);
    takesFiles((text) => this.insert(text));
    this.sidebar = new Sidebar(this);
    // A keyboard that comes up, or a window made smaller, keeps the end in sight.
    let wasAtBottom = true;
    this.scroller.addEventListener("scroll", () => (wasAtBottom = this.atBottom()));
    new ResizeObserver(() => wasAtBottom && this.conversation.messages.length && this.bottom(true)).observe(this.scroller);
    this.ready();
  }

  get messages() {
    return path(this.conversation);
  }

  /** Whether an answer is being written in a conversation, here or in another tab. */
  isWritten(id) {
    return this.elsewhere.has(id) || [...this.writings.keys()].some((one) => one.id === id);
  }

  /** The page is being left: what has come of an answer is kept, and nobody writes it any more. */
  leave() {
    if (this.writing) database.rescue(this.conversation);
    for (const { id } of this.writings.keys()) database.tell(id);
  }

  /** The AbortController of the answer that is being written here. */
  get writing() {
    return this.writings.get(this.conversation) ?? null;
  }

  /** The model to talk to; null where none of those served can chat. */
  use(model) {
    this.model = model;
    this.ready();
    if (!this.messages.length) this.render();
    this.recount();
  }

  ready() {
    const busy = Boolean(this.writing);
    this.button.replaceChildren(icon(busy ? "stop" : "send"));
    this.button.setAttribute("aria-label", busy ? "Stop" : "Send");
    this.button.title = busy ? "Stop (Esc)" : "Send (Enter)";
    this.button.disabled = !busy && (!this.model || !this.input.value.trim());
    this.button.classList.toggle("stopping", busy);
    this.input.placeholder = this.model ? `Say something to ${this.model.name}` : "";
    this.panel.toggleAttribute("data-writing", busy);
    this.sidebar.mark();
  }

  // What is being typed: kept for each conversation.

  /** The name of a draft; a conversation in which nothing was said is always the same new one. */
  get draft() {
    return this.conversation.messages.length ? this.conversation.id : "new";
  }

  drafted() {
    const { [this.draft]: _, ...others } = store.read("drafts", {});
    const kept = Object.entries(others).slice(-DRAFTS);
    if (this.input.value) kept.push([this.draft, this.input.value]);
    store.write("drafts", Object.fromEntries(kept));
    this.ready();
    this.recount();
  }

  write(text) {
    this.input.value = text;
    this.input.dispatchEvent(new Event("input"));
  }

  insert(text) {
    this.write(this.input.value ? `${this.input.value.trimEnd()}\n\n${text}` : text);
    this.input.focus();
  }

  key(event) {
    if (event.key === "Enter" && !event.shiftKey && !composing(event)) {
      event.preventDefault();
      if (!this.writing) this.pressed();
    } else if (event.key === "ArrowUp" && !this.input.value) {
      const last = this.messages.findLastIndex((message) => message.role === "user");
      if (last >= 0) (event.preventDefault(), this.edit(last));
    }
  }

  pressed() {
    if (this.writing) return this.stop();
    const text = this.input.value.trim();
    if (!text || !this.model) return;
    this.write("");
    this.ask(text, this.messages.length);
  }

  stop() {
    this.writing?.abort();
  }

  // Conversations

  /** Open the one that the address names, else the last one, else a new one. */
  async openNamed() {
    const named = /^#c=([\w-]+)$/.exec(location.hash)?.[1];
    const found = await this.found(named ?? store.read("open", ""));
    await this.open(found ?? fresh(), { visit: false });
  }

  /** A conversation by its id, as it is being written where it is; null where there is none. */
  async found(id) {
    for (const conversation of this.writings.keys()) if (conversation.id === id) return conversation;
    return database.load(id);
  }

  async open(conversation, { visit = true } = {}) {
    $("insight").look?.close();
    this.conversation = conversation;
    this.first = 0;
    store.write("open", conversation.id);
    const address = conversation.messages.length ? `#c=${conversation.id}` : location.pathname;
    if (visit) history.pushState(null, "", address);
    this.input.value = store.read("drafts", {})[this.draft] ?? "";
    this.fit();
    showError("");
    this.render();
    this.ready();
    this.list();
    this.recount();
    if (conversation.messages.length) this.bottom(true);
    else this.scroller.scrollTop = 0;
    this.newest.hidden = this.atBottom();
    if (matchMedia("(pointer: fine)").matches && !$("sidebar").contains(document.activeElement)) this.input.focus({ preventScroll: true });
  }

  list() {
    document.title = this.conversation.messages.length ? `${titled(this.conversation)} · Transom` : "Transom";
    return this.sidebar.show(this.conversation.id);
  }

  /** Another tab kept or removed something, or writes it. */
  async changed(id, writing) {
    const was = this.elsewhere.has(id);
    if (writing) this.elsewhere.add(id);
    else this.elsewhere.delete(id);
    this.list();
    const { conversation } = this;
    if (id !== conversation.id || this.writing) return;
    if (was !== this.elsewhere.has(id)) this.redraw();
    const now = await database.load(id);
    if (this.conversation !== conversation || this.writing) return;
    if (!now) conversation.revision = 0; // removed there; to say more keeps it again
    else if (now.revision !== conversation.revision) {
      const end = this.atBottom();
      this.conversation = now;
      this.render();
      this.list();
      this.recount();
      if (end) this.bottom(true);
    }
  }

  /** Keep a conversation, one saving after the other. */
  keep(conversation = this.conversation) {
    this.panel.setAttribute("data-saving", "");
    const saving = this.saving.then(async () => {
      if (!conversation.messages.length) return this.list();
      try {
        const parted = await database.save(conversation, this.writings.has(conversation));
        if (parted) showError("This conversation was changed in another tab. What was said here is kept as a conversation of its own.");
      } catch (error) {
        showError(`This browser cannot keep the conversation (${error.message}). Export it, or delete others to make room.`);
      }
      if (conversation === this.conversation) {
        store.write("open", conversation.id);
        history.replaceState(null, "", `#c=${conversation.id}`);
      }
      return this.list();
    });
    this.saving = saving.finally(() => this.saving === last && this.panel.removeAttribute("data-saving"));
    const last = this.saving;
    return last;
  }

  // Messages

  render() {
    const { messages } = this;
    if (!messages.length) return this.thread.replaceChildren(this.model ? empty(this) : "");
    this.thread.replaceChildren(systemText(this), ...messages.map((message, place) => this.message(message, place)));
    this.drop(this.first);
  }

  message(message, place) {
    return message.role === "user" ? said(this, message, place) : answered(this, message, place);
  }

  node(place) {
    return this.thread.querySelector(`[data-place="${place}"]`);
  }

  /** Draw anew, and give the focus back to what had it, by its name, in the message in which it was. */
  redraw() {
    const had = document.activeElement;
    const place = had?.closest?.("[data-place]")?.dataset.place;
    const name = had?.getAttribute?.("aria-label") ?? had?.textContent;
    const arrows = had?.closest?.(".versions");
    this.render();
    if (place === undefined || had.isConnected) return;
    const buttons = [...(this.node(place)?.querySelectorAll("button") ?? [])].filter((button) => !button.disabled);
    const same = buttons.find((button) => (button.getAttribute("aria-label") ?? button.textContent) === name);
    (same ?? buttons.find((button) => arrows && button.closest(".versions")) ?? buttons[0] ?? this.input).focus();
  }

  /** Show what was said beside a message, and what followed from that. */
  turned(message, step) {
    turn(this.conversation, message, step);
    this.keep();
    this.redraw();
    this.recount();
  }

  /** Show which messages the model no longer reads. */
  drop(first) {
    this.first = first;
    this.thread.querySelector(".dropped-line")?.remove();
    for (const node of this.thread.querySelectorAll(".message"))
      node.toggleAttribute("data-dropped", Number(node.dataset.place) < first);
    if (first > 0)
      this.node(first)?.before(h("p", { class: "dropped-line" }, "Above this line: no longer read by the model"));
  }

  // Asking and answering

  /**
   * Where the system text and what is remembered (`note`) go, by the rule of the terminal: { head, above }. The
   * note stands below the system text, or the template's own; above the last message where that takes none.
   */
  told(model, note = "") {
    const own = (this.conversation.system ?? store.settings.system).trim();
    const base = own || (note && model.default_system);
    if (base === null) return { head: [], above: note };
    const system = [base, note].filter(Boolean).join("\n\n");
    return { head: system ? [{ role: "system", content: system }] : [], above: "" };
  }

  async count() {
    const { model, writing } = this;
    if (!model || writing) return;
    const draft = this.input.value.trim();
    const { messages } = this;
    const said = plainly(messages);
    if (draft) said.push({ role: "user", content: draft });
    this.counting?.abort();
    this.counting = new AbortController();
    try {
      const room = roomFor(model, store.settings.maxTokens);
      const note = messages.findLast((message) => message.role === "user")?.note;
      const { head, above } = this.told(model, note);
      const kept = await fitting(model, head, withNote(above, said), room, this.counting.signal, this.first);
      this.meter.show(kept, said.length);
      this.drop(Math.min(kept.first, messages.length));
    } catch (error) {
      if (error.name !== "AbortError") this.meter.hide();
    }
  }

  /** Say `text` as message `place`; what stood there and below stays beside it. */
  async ask(text, place) {
    const { conversation } = this;
    conversation.system ??= store.settings.system; // what is set from now on is of other conversations
    const message = { role: "user", text };
    const prepare = async () => {
      const { note, facts, kept, not_kept: notKept } = await recall(text);
      if (note) Object.assign(message, { note, facts });
      if (kept) message.kept = kept.id;
      if (notKept) message.notKept = notKept;
    };
    const undo = say(conversation, this.messages[place - 1] ?? null, message);
    const came = await this.answer(place, { prepare, undo });
    if (!came && this.conversation === conversation && !this.input.value) this.write(text); // to be said again, perhaps differently
  }

  again(place) {
    return this.answer(place - 1);
  }

  /** Go another way from a token of answer `place`, with the model that wrote it. */
  branch(place, token, other) {
    const version = this.messages[place];
    const way = branch(version, token, other, this.node(place).written.starts);
    return this.answer(place - 1, { ...way, asked: version.asked });
  }

  /** Why nothing can go on from a message, or nothing. */
  cannotGoOn({ asked, model }) {
    if (!asked) return "What was asked for it is not known: it was read from a file without that.";
    return served(asked.model) ? "" : `Written by ${model}, which is not served now.`;
  }

  /** What was said before message `place`, as the API wants it. */
  plainly(place) {
    return plainly(this.messages.slice(0, place));
  }

  /** What going another way from message `place` means for what stands below. */
  aside(place) {
    const after = this.messages.length - place - 1;
    return after ? `The ${count(after, "message")} below stay${after === 1 ? "s" : ""} on the other way.` : "";
  }

  goOn(place) {
    const { text, tokens, asked } = this.messages[place];
    const prefix = tokens.map(({ id }) => id);
    return this.answer(place - 1, { version: { text, tokens: [...tokens] }, prefix, asked });
  }

  /**
   * Write an answer to the message at `place`, beside those it has.
   *
   * `prepare` is waited for first; `version` is what the answer begins with, of the tokens `prefix`, and `asked`
   * what those were an answer to: the rest is then asked of the same model under the same system text. Where
   * nothing came, it is taken back, and by `undo` what came before it; the result is false.
   */
  async answer(place, { prepare, undo, version = { text: "", tokens: [] }, prefix = [], asked: before } = {}) {
    const model = before ? served(before.model) : this.model;
    if (this.writing || !model) return false;
    const { conversation } = this;
    const controller = new AbortController();
    const asking = this.messages[place];
    const body = { ...sampling(model), ...CHAT.fields, stream_options: { include_usage: true } };
    if (prefix.length) body.prefix_tokens = prefix;
    Object.assign(version, { role: "assistant", model: model.name, seed: body.seed, finish: null });
    const takeBack = say(conversation, asking, version);
    this.writings.set(conversation, controller);
    this.ready();
    showError("");
    this.redraw();
    this.bottom(true);
    const wait = waiting(() => this.conversation === conversation && this.node(place + 1));
    let came = false;
    try {
      await prepare?.();
      const { head, above } = before ?? this.told(model, asking.note);
      const asked = withNote(above, plainly(path(conversation).slice(0, place + 1)));
      const room = roomFor(model, body.max_tokens);
      const kept = await fitting(model, head, asked, room, controller.signal, this.first);
      // The tokens it begins with come on top, as far as the model's length allows.
      const left = kept.limit - kept.nTokens - prefix.length;
      if (!kept.fits || left < 1) throw new Error(tooLong(kept));
      body.max_tokens = Math.min(body.max_tokens, left);
      body.messages = [...head, ...asked.slice(kept.first)];
      version.asked = { model: model.id, head, above, first: kept.first }; // for a look inside
      if (this.conversation === conversation) (this.meter.show(kept, place + 1), this.drop(kept.first));
      wait.reads(kept.nTokens, store.read(`reads.${model.id}`, null));
      this.keep(conversation); // so that a reload in between loses no question
      const show = this.painter(conversation, place + 1, version);
      const changed = () => {
        if (!version.tokens.length && !version.text) return; // it has begun to read
        const rate = came ? null : wait.came();
        if (rate) store.write(`reads.${model.id}`, rate);
        came = true;
        wait.over();
        show();
      };
      await stream("/v1/chat/completions", body, version, CHAT, changed, controller.signal);
      announce("The answer is complete.");
    } catch (error) {
      version.finish = error.name === "AbortError" ? "stopped" : "error";
      if (error.name !== "AbortError") showError(error.message);
    }
    wait.over();
    this.writings.delete(conversation);
    if (!came) (takeBack(), undo?.());
    if (came || undo) this.keep(conversation);
    if (this.conversation === conversation) this.redraw();
    this.ready();
    this.recount();
    return came;
  }

  /** Gives a function that shows what an answer has become, once a frame, and keeps it now and then. */
  painter(conversation, place, version) {
    let wanted = false;
    let kept = performance.now();
    return () => {
      if (wanted) return;
      wanted = true;
      requestAnimationFrame(() => {
        wanted = false;
        if (!this.writings.has(conversation)) return; // it was kept when it ended, and another tab may have gone on from it
        if (performance.now() - kept > SAVED_EVERY) {
          kept = performance.now();
          this.keep(conversation);
        }
        if (this.conversation !== conversation) return;
        const follow = this.atBottom();
        this.node(place)?.written.update(version.text, version.tokens);
        if (follow) this.bottom();
      });
    };
  }

  atBottom() {
    const { scrollTop, scrollHeight, clientHeight } = this.scroller;
    return scrollHeight - scrollTop - clientHeight < 80;
  }

  bottom(always = false) {
    if (always || this.atBottom()) this.scroller.scrollTop = this.scroller.scrollHeight;
    this.newest.hidden = this.atBottom();
  }

  /** Let the user say message `place` differently, where it stands. */
  edit(place) {
    if (this.writing) return;
    const area = h("textarea", { class: "say", dir: "auto", "aria-label": "Your message, to be changed", rows: 1 });
    area.value = this.messages[place].text;
    growing(area);
    const back = () => (this.redraw(), this.node(place).querySelector("[data-act=edit]").focus());
    const done = () => {
      const text = area.value.trim();
      if (text) this.ask(text, place);
    };
    area.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && !composing(event)) (event.stopPropagation(), back());
      if (event.key === "Enter" && !event.shiftKey && !composing(event)) (event.preventDefault(), done());
    });
    this.node(place).querySelector(".body").replaceChildren(
      h("div", { class: "sheet editing" }, area),
      h("div", { class: "actions shown" },
        h("button", { class: "button primary", onclick: done }, "Send"),
        h("button", { class: "button", onclick: back }, "Cancel"),
        h("span", { class: "quiet" }, this.aside(place))));
    area.focus();
  }
}
