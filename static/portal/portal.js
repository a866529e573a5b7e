// What every page needs: times in the reader's zone, copy buttons, dialogs, the choice of a theme, and a
// way for the keyboard into what scrolls.
"use strict";

(() => {
  const root = document.documentElement;
  const stored = localStorage.getItem("theme");
  if (stored) root.dataset.theme = stored;

  const zoned = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });
  const precise = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });
  const day = new Intl.DateTimeFormat(undefined, { dateStyle: "medium" });

  // <time datetime="2026-01-01T00:00:00Z" data-form="day|precise"> in the reader's zone; UTC on hover.
  function showTimes(within) {
    for (const element of within.querySelectorAll("time[datetime]:not([title])")) {
      const at = new Date(element.dateTime);
      if (Number.isNaN(at.getTime())) continue;
      const form = { day, precise }[element.dataset.form] || zoned;
      element.title = at.toISOString().replace("T", " ").replace(/\.\d+Z$/, " UTC");
      element.textContent = form.format(at);
    }
  }

  // What scrolls sideways has to be reached by keyboard; what does not is no stop on the way.
  function letScroll(within) {
    for (const element of within.querySelectorAll("pre, .table")) {
      if (element.scrollWidth > element.clientWidth) element.tabIndex = 0;
      else element.removeAttribute("tabindex");
    }
  }

  // -- For the scripts of single pages ---------------------------------------------------------------
  function element(name, text, className) {
    const made = document.createElement(name);
    if (text !== undefined) made.textContent = text;
    if (className) made.className = className;
    return made;
  }

  function shape(name, attributes, text) {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text !== undefined) made.textContent = text;
    return made;
  }

  // A redirect is not followed: it leads to the form to sign in.
  function post(url, csrf) {
    return fetch(url, {
      method: "POST",
      headers: { "X-CSRFToken": csrf, Accept: "application/json" },
      redirect: "manual",
    });
  }

  window.portal = { element, shape, post };

  function prepare(within) {
    showTimes(within);
    letScroll(within);
  }

  async function copy(button) {
    const source = document.querySelector(button.dataset.copy);
    const text = "value" in source ? source.value : source.textContent;
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      // Without TLS there is no clipboard to write to: select, so that one keystroke copies.
      if ("select" in source) source.select();
      else getSelection().selectAllChildren(source);
      return say(button, "Press Ctrl-C");
    }
    say(button, "Copied");
  }

  function say(button, word) {
    const before = button.dataset.word || (button.dataset.word = button.textContent);
    button.textContent = word;
    setTimeout(() => { button.textContent = before; }, 1600);
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-copy], [data-open], [data-close], [data-theme-switch]");
    if (!button) return;
    if (button.dataset.copy) copy(button);
    else if (button.dataset.open) document.querySelector(button.dataset.open).showModal();
    else if ("close" in button.dataset) button.closest("dialog").close();
    else {
      const isDark = root.dataset.theme
        ? root.dataset.theme === "dark"
        : matchMedia("(prefers-color-scheme: dark)").matches;
      root.dataset.theme = isDark ? "light" : "dark";
      localStorage.setItem("theme", root.dataset.theme);
    }
  });
  document.addEventListener("htmx:load", (event) => prepare(event.detail.elt.parentElement || document));
  document.addEventListener("DOMContentLoaded", () => {
    prepare(document);
    // On a phone the navigation stands in a row that scrolls: begin where the reader is.
    document.querySelector(".side-nav [aria-current]")?.scrollIntoView({ block: "nearest", inline: "center" });
  });
  addEventListener("resize", () => letScroll(document));
})();
