// The list of conversations: to search, rename, take out and bring in; on a narrow screen the drawer it lies in.

import { $, action, announce, count, h, icon, later, save, showError } from "./dom.js";
import { asJson, asMarkdown, fresh, fromJson } from "./conversation.js";
import * as database from "./database.js";

const SEARCHABLE = 2; // conversations from which on a list needs a search
const SHOWN = 200; // rows at a time

export class Sidebar {
  constructor(chat) {
    this.chat = chat;
    this.openId = "";
    this.list = $("conversations");
    this.query = h("input", { type: "search", class: "search", placeholder: "Search", "aria-label": "Search conversations", hidden: true,
      oninput: later(() => this.show(), 60), onfocus: () => database.search("") });
    const file = h("input", { type: "file", accept: ".json,application/json", hidden: true, "aria-label": "A file of conversations", onchange: () => this.import(file) });
    this.all = h("span", { class: "sidebar-actions" },
      action("Import", () => file.click()), action("Export all", () => this.exportAll()));
    this.list.before(this.query);
    this.list.after(this.all, file);
    $("new-chat").append(icon("plus"), "New conversation");
    $("new-chat").addEventListener("click", () => chat.open(fresh()).then(() => chat.input.focus()));
    this.list.addEventListener("keydown", (event) => this.walk(event));
    $("row-menu").addEventListener("keydown", (event) => this.walk(event));
  }

  /** Show all conversations, or those that are searched for; `openId` is the one that stands on the page. */
  async show(openId = this.openId) {
    this.openId = openId;
    const asked = (this.asked = (this.asked ?? 0) + 1);
    const heads = await database.heads();
    const query = this.query.value.trim();
    const found = query ? await database.search(query) : null;
    if (asked !== this.asked || this.list.querySelector("form")) return; // another list is on its way, or a name is being given
    const wanted = found ? heads.filter(({ id }) => found.has(id)) : heads;
    this.query.hidden = heads.length < SEARCHABLE && !query;
    const shown = JSON.stringify([query, wanted.slice(0, SHOWN).map(({ id, title }) => [id, title])]);
    if (shown === this.shown && !this.list.querySelector("li:not([data-id]), .sure, li:empty")) return this.mark();
    this.shown = shown;
    const had = document.activeElement?.closest?.("li")?.dataset.id;
    const more = wanted.length > SHOWN && h("li", { class: "quiet more" }, `${(wanted.length - SHOWN).toLocaleString("en")} older ones: search for them`);
    const rows = wanted.slice(0, SHOWN).map((head) => this.row(head));
    this.list.replaceChildren(...rows, ...(more ? [more] : []), ...(query && !rows.length ? [h("li", { class: "quiet more" }, "Nothing found")] : []));
    if (had) this.rowOf(had)?.querySelector("button").focus();
  }

  /** Another one of the same list is open, or being answered. */
  mark() {
    for (const button of this.list.querySelectorAll(".conversation")) {
      const { id } = button.parentNode.dataset;
      if (id === this.openId) button.setAttribute("aria-current", "true");
      else button.removeAttribute("aria-current");
      button.nextElementSibling.hidden = !this.chat.isWritten(id);
    }
  }

  rowOf(id) {
    return this.list.querySelector(`li[data-id="${id}"]`);
  }

  row({ id, title, updated }) {
    return h("li", { "data-id": id },
      h("button", {
        class: "conversation", dir: "auto", "aria-current": id === this.openId ? "true" : null, title: `${title}\n${new Date(updated).toLocaleString("en")}`,
        onclick: async () => this.chat.open((await this.chat.found(id)) ?? fresh()), ondblclick: () => this.rename(id, title),
      }, title || "New conversation"),
      h("span", { class: "pen", role: "img", "aria-label": "An answer is being written", title: "An answer is being written", hidden: !this.chat.isWritten(id) }),
      h("button", { class: "icon-button", "aria-label": `More about: ${title}`, title: "More", "aria-haspopup": "menu", onclick: (event) => this.menu(event.currentTarget, id, title) }, icon("more")));
  }

  menu(button, id, title) {
    const menu = $("row-menu");
    const item = (label, work) => h("button", { role: "menuitem", type: "button", onclick: () => (menu.hidePopover(), work()) }, label);
    const one = async (name, make) => save(`${(title || "conversation").replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 40)}.${name}`, make(await this.chat.found(id)));
    menu.replaceChildren(
      item("Rename", () => this.rename(id, title)),
      item("Export as Markdown", () => one("md", asMarkdown)),
      item("Export as JSON", () => one("json", (conversation) => asJson([conversation]))),
      item("Delete", () => this.sure(id)));
    menu.ontoggle = (event) => event.newState === "closed" && (document.activeElement === document.body || menu.contains(document.activeElement)) && button.focus(); // it comes late
    menu.showPopover();
    const { bottom, left } = button.getBoundingClientRect();
    menu.style.setProperty("--x", `${Math.min(left, innerWidth - menu.offsetWidth - 8)}px`);
    menu.style.setProperty("--y", `${Math.min(bottom + 4, innerHeight - menu.offsetHeight - 8)}px`);
    menu.firstChild.focus();
  }

  /** Up and down through rows, and through the items of a menu. */
  walk(event) {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step || event.target.matches("input")) return;
    const all = [...event.currentTarget.querySelectorAll(".conversation, [role=menuitem]")];
    const at = all.indexOf(event.target);
    if (at < 0) return;
    event.preventDefault();
    all[Math.max(0, Math.min(all.length - 1, at + step))].focus();
  }

  rename(id, title) {
    const item = this.rowOf(id);
    if (!item) return;
    const name = h("input", { class: "rename", "aria-label": "Name of the conversation", maxlength: 200, dir: "auto" });
    name.value = title;
    const back = async () => {
      item.replaceChildren(); // the form is gone, so that the list is drawn
      await this.show();
      this.rowOf(id)?.querySelector("button").focus();
    };
    const keep = async (event) => {
      event.preventDefault();
      const conversation = await this.chat.found(id);
      const given = name.value.trim();
      if (conversation && given !== title) {
        Object.assign(conversation, { title: given, named: Boolean(given) });
        if (id === this.chat.conversation.id) Object.assign(this.chat.conversation, { title: given, named: Boolean(given) });
        item.replaceChildren();
        await this.chat.keep(id === this.chat.conversation.id ? this.chat.conversation : conversation);
      }
      await back();
    };
    const key = (event) => event.key === "Escape" && (event.stopPropagation(), back());
    item.replaceChildren(h("form", { class: "renaming", onsubmit: keep, onkeydown: key }, name));
    name.addEventListener("blur", () => name.isConnected && keep(new Event("blur")));
    name.select();
  }

  sure(id) {
    const item = this.rowOf(id);
    const remove = async () => {
      const next = item.nextElementSibling ?? item.previousElementSibling;
      await database.remove(id);
      if (id === this.chat.conversation.id) await this.chat.open(fresh());
      else await this.show();
      (this.rowOf(next?.dataset.id)?.querySelector("button") ?? $("new-chat")).focus();
      announce("Deleted");
    };
    const back = async () => (await this.show(), this.rowOf(id)?.querySelector("button").focus());
    item.replaceChildren(h("span", { class: "sure" }, "Delete?"), action("Delete", remove), action("Keep", back));
    item.querySelector("button").focus();
  }

  async exportAll() {
    save("conversations.json", asJson(await database.everything()));
  }

  async import(field) {
    const [file] = field.files;
    field.value = "";
    if (!file) return;
    try {
      const read = fromJson(await file.text());
      await database.add(read);
      showError("");
      announce(`${count(read.length, "conversation")} read in`);
      if (read.length) await this.chat.open(await database.load(read[0].id));
    } catch (error) {
      showError(`${file.name}: ${error.message}`);
    }
  }
}

/** The button that opens the list where the screen is narrow. Gives what closes it: true where it was open. */
export function drawerOnPhones() {
  const beside = () => [$("main"), document.querySelector(".brand"), document.querySelector(".tabs"), document.querySelector(".tools")];
  const turn = (open) => {
    const was = document.body.hasAttribute("data-sidebar");
    document.body.toggleAttribute("data-sidebar", open);
    $("sidebar-close").hidden = !open;
    $("sidebar-open").setAttribute("aria-expanded", open);
    for (const node of beside()) node.inert = open;
    if (open) $("new-chat").focus();
    else if (was) $("sidebar-open").focus();
    return was;
  };
  $("sidebar-open").append(icon("menu"));
  $("sidebar-open").addEventListener("click", () => turn(!document.body.hasAttribute("data-sidebar")));
  $("sidebar-close").addEventListener("click", () => turn(false));
  $("sidebar").addEventListener("click", (event) => event.target.closest(".conversation, #new-chat") && turn(false));
  return () => turn(false);
}
