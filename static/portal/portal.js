// What every page needs: the reader's zone, copy buttons, dialogs, the choice of a theme, the field that
// needs another look, forms that are sent once, and a way for the keyboard into what scrolls.
"use strict";

(() => {
  const root = document.documentElement;
  const stored = localStorage.getItem("theme");
  if (stored) root.dataset.theme = stored;

  // The pages are written in the reader's zone, or in UTC (`portal/clocks.py`).
  const YEAR = "; path=/; max-age=31536000; samesite=lax";
  const zone = Intl.DateTimeFormat().resolvedOptions().timeZone || "UTC";
  document.cookie = `zone=${zone}${YEAR}`;

  // What scrolls has to be reached by keyboard; what does not is no stop on the way, unless its page
  // says so: what is hidden now may scroll later.
  function letScroll(within) {
    for (const element of within.querySelectorAll("pre, .table")) {
      if (element.hasAttribute("tabindex") && !element.dataset.stop) continue;
      const scrolls = element.scrollWidth > element.clientWidth || element.scrollHeight > element.clientHeight + 1;
      if (scrolls) {
        element.tabIndex = 0;
        element.dataset.stop = "added";
      } else element.removeAttribute("tabindex");
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
  function post(url, csrf, fields = {}) {
    return fetch(url, {
      method: "POST",
      headers: { "X-CSRFToken": csrf, Accept: "application/json" },
      body: new URLSearchParams(fields),
      redirect: "manual",
    });
  }

  // Sentences are written in English here; a page in another language loads its own before
  // (`translations.de.js`, made of the catalogue). Facts are named as in the catalogue: `%(n)s`.
  const translations = window.translations || {};
  const filled = (text, facts) => text.replace(/%\((\w+)\)s/g, (place, name) => facts[name] ?? place);
  const gettext = (text, facts = {}) => filled(translations[text] || text, facts);
  const ngettext = (one, many, n, facts = {}) => filled((translations[one] || [one, many])[n === 1 ? 0 : 1], { n: number(n), ...facts });
  const number = (value, digits) => value.toLocaleString(root.lang, digits === undefined ? {} : { minimumFractionDigits: digits, maximumFractionDigits: digits });

  // As `portal/clocks.py` writes a time to the second, in the zone of the page.
  function written(at) {
    const year = new Date(at).getFullYear() === new Date().getFullYear() ? {} : { year: "numeric" };
    const [day, second] = [
      { day: root.lang === "en" ? "2-digit" : "numeric", month: "short", ...year },
      { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" },
    ].map((form) => new Intl.DateTimeFormat(root.lang === "en" ? "en-GB" : root.lang, { timeZone: root.dataset.zone, ...form }).format(at));
    return root.lang === "de" ? `${day}, ${second}` : `${day} ${second}`;
  }

  window.portal = { element, shape, post, letScroll, gettext, ngettext, number, written };

  // Where rows are cards their headings are not seen: a number says what it is.
  function label(within) {
    for (const cell of within.querySelectorAll("table.cards td.number:not([data-label])")) {
      const heading = cell.closest("table").tHead?.rows[0].cells[cell.cellIndex];
      if (heading && cell.textContent.trim() && !cell.matches(":first-child")) cell.dataset.label = heading.textContent;
    }
  }

  function prepare(within) {
    letScroll(within);
    label(within);
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
      return say(button, gettext("Press Ctrl-C"));
    }
    say(button, gettext("Copied"));
  }

  function say(button, word) {
    const before = button.dataset.word || (button.dataset.word = button.textContent);
    button.textContent = word;
    setTimeout(() => { button.textContent = before; }, 1600);
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-copy], [data-open], [data-close], [data-theme-switch], [data-clock-switch]");
    if (!button) return;
    if (button.dataset.copy) copy(button);
    else if (button.dataset.open) document.querySelector(button.dataset.open).showModal();
    else if ("close" in button.dataset) button.closest("dialog").close();
    else if ("clockSwitch" in button.dataset) {
      const isUtc = /(^|; )clock=utc/.test(document.cookie);
      document.cookie = `clock=${isUtc ? "local" : "utc"}${YEAR}`;
      location.reload();
    }
    else {
      const isDark = root.dataset.theme
        ? root.dataset.theme === "dark"
        : matchMedia("(prefers-color-scheme: dark)").matches;
      root.dataset.theme = isDark ? "light" : "dark";
      localStorage.setItem("theme", root.dataset.theme);
    }
  });
  // Views of a list that the reader keeps in this browser: a name for a query.
  function showViews() {
    const place = document.querySelector("[data-views]");
    const save = document.querySelector("[data-save-view]");
    if (!place || !save) return;
    const key = `views:${place.dataset.views}`;
    const views = JSON.parse(localStorage.getItem(key) || "{}");
    const keep = () => { localStorage.setItem(key, JSON.stringify(views)); showViews(); };
    place.replaceChildren(...Object.entries(views).map(([name, query]) => {
      const link = element("a", name, "badge");
      link.href = query;
      const drop = element("button", "×", "link");
      drop.setAttribute("aria-label", gettext("Forget the view %(name)s", { name }));
      drop.onclick = () => { delete views[name]; keep(); };
      const both = element("span");
      both.append(link, drop);
      return both;
    }));
    place.hidden = !place.children.length;
    save.hidden = !location.search;
    save.onclick = () => {
      const name = prompt(gettext("A name for this view"));
      if (name) { views[name.slice(0, 40)] = location.search; keep(); }
    };
  }

  // A second click on a button sends nothing a second time; coming back to the page frees it.
  document.addEventListener("submit", (event) => {
    const form = event.target;
    if (event.defaultPrevented || form.method !== "post" || "again" in form.dataset) return;
    if (form.dataset.sent) return event.preventDefault();
    form.dataset.sent = "yes";
  });
  addEventListener("pageshow", () => {
    for (const form of document.querySelectorAll("form[data-sent]")) delete form.dataset.sent;
  });
  // What was folded had no width to scroll in.
  document.addEventListener("toggle", (event) => letScroll(event.target), true);
  // What renews itself waits while somebody reads it by keyboard, or nobody looks.
  document.addEventListener("htmx:beforeRequest", (event) => {
    const live = event.detail.elt;
    if (!("live" in live.dataset)) return;
    if (document.hidden || live.contains(document.activeElement)) event.preventDefault();
  });
  document.addEventListener("htmx:load", (event) => prepare(event.detail.elt.parentElement || document));
  document.addEventListener("DOMContentLoaded", () => {
    prepare(document);
    showViews();
    for (const button of document.querySelectorAll("[data-clock-switch]")) button.hidden = zone === "UTC";
    document.querySelector("dialog[data-opened]")?.showModal();
    document.querySelector("[aria-invalid=true]")?.focus();
    // On a phone long sections begin folded: a page of all of them is found by its headings.
    if (matchMedia("(max-width: 40rem)").matches) {
      for (const section of document.querySelectorAll("details[data-fold]:not(:target)")) section.open = false;
    }
    // On a phone the navigation stands in a row that scrolls: begin where the reader is.
    document.querySelector(".side-nav [aria-current]")?.scrollIntoView({ block: "nearest", inline: "center" });
  });
  for (const change of ["resize", "load"]) addEventListener(change, () => letScroll(document));
})();
