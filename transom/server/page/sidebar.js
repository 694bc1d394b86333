// The list of conversations, and on a narrow screen the drawer it lies in.

import { $, action, h, icon } from "./dom.js";
import * as store from "./store.js";

/** Show all conversations; `open` is the one that stands on the page. */
export function listConversations({ open, onopen, ondelete }) {
  const again = () => listConversations({ open, onopen, ondelete });
  const row = ({ id, title }) => {
    const item = h("li", {},
      h("button", { class: "conversation", "aria-current": id === open ? "true" : null, onclick: () => onopen(id) }, title),
      h("button", { class: "icon-button", "aria-label": `Delete: ${title}`, title: "Delete", onclick: () => sure(item) }, icon("bin")));
    const sure = () => {
      const remove = () => {
        store.remove(id);
        again();
        ondelete(id);
      };
      item.replaceChildren(h("span", { class: "sure" }, "Delete for good?"), action("Delete", remove), action("Keep", again));
      item.querySelector("button").focus();
    };
    return item;
  };
  $("conversations").replaceChildren(...store.conversations().map(row));
}

/** The button that opens the list where the screen is narrow. Gives what closes it: true where it was open. */
export function sidebar() {
  const turn = (open) => {
    const was = document.body.hasAttribute("data-sidebar");
    document.body.toggleAttribute("data-sidebar", open);
    $("sidebar-close").hidden = !open;
    $("sidebar-open").setAttribute("aria-expanded", open);
    if (open) $("new-chat").focus();
    return was;
  };
  $("sidebar-open").append(icon("menu"));
  $("sidebar-open").addEventListener("click", () => turn(!document.body.hasAttribute("data-sidebar")));
  $("sidebar-close").addEventListener("click", () => turn(false));
  $("sidebar").addEventListener("click", (event) => event.target.closest(".conversation, #new-chat") && turn(false));
  return () => turn(false);
}
