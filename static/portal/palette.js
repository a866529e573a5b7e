// One box for all, on ⌘K or Ctrl-K: pages, keys, anything by its id. Arrow keys choose, Enter opens.
"use strict";

(() => {
  const { element, gettext } = window.portal;
  const dialog = element("dialog", undefined, "palette");
  dialog.setAttribute("aria-label", gettext("Go to"));
  const input = element("input");
  input.type = "text";
  input.placeholder = gettext("A page, a key, or any id");
  input.autocomplete = "off";
  input.spellcheck = false;
  for (const [name, value] of Object.entries({
    role: "combobox", "aria-label": gettext("Go to a page, a key, or any id"), "aria-expanded": "true",
    "aria-controls": "palette-list", "aria-autocomplete": "list",
  })) input.setAttribute(name, value);
  const list = element("ul");
  list.id = "palette-list";
  list.setAttribute("role", "listbox");
  list.setAttribute("aria-label", gettext("Found"));
  const said = element("p", "", "fine");
  said.setAttribute("role", "status");
  dialog.append(input, list, said);

  let at = 0, asked = 0, timer;

  function mark(next) {
    const options = [...list.children];
    if (!options.length) return;
    at = (next + options.length) % options.length;
    options.forEach((option, number) => option.setAttribute("aria-selected", String(number === at)));
    input.setAttribute("aria-activedescendant", options[at].id);
    options[at].scrollIntoView({ block: "nearest" });
  }

  function show(results) {
    list.replaceChildren(...results.map((result, number) => {
      const option = element("li");
      option.id = `palette-${number}`;
      option.setAttribute("role", "option");
      option.dataset.url = result.url;
      option.append(element("bdi", result.label), element("span", result.hint, "fine"));
      return option;
    }));
    said.textContent = results.length ? "" : gettext("Nothing of this workspace matches.");
    mark(0);
  }

  async function ask() {
    const mine = ++asked;
    try {
      const answer = await fetch(`/app/search?q=${encodeURIComponent(input.value)}`, { redirect: "manual" });
      if (mine !== asked) return;
      if (!answer.ok) throw new Error();
      show((await answer.json()).results);
    } catch {
      if (mine === asked) said.textContent = gettext("The gateway did not answer. Type on to ask again.");
    }
  }

  function open() {
    if (!dialog.isConnected) document.body.append(dialog);
    input.value = "";
    if (!dialog.open) dialog.showModal();
    ask();
  }

  function go(option) {
    if (option) location.assign(option.dataset.url);
  }

  input.addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(ask, 120); });
  input.addEventListener("keydown", (event) => {
    if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      event.preventDefault();
      mark(at + (event.key === "ArrowDown" ? 1 : -1));
    } else if (event.key === "Enter") {
      event.preventDefault();
      go(list.children[at]);
    }
  });
  list.addEventListener("click", (event) => go(event.target.closest("[role=option]")));
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  document.addEventListener("click", (event) => { if (event.target.closest("[data-palette]")) open(); });
  addEventListener("keydown", (event) => {
    if ((event.metaKey || event.ctrlKey) && event.key.toLowerCase() === "k") {
      event.preventDefault();
      open();
    }
  });
})();
