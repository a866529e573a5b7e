// The documentation: its search as one types, the language of samples, and a key filled in.
"use strict";

document.addEventListener("DOMContentLoaded", () => {
  const { element, gettext } = window.portal;

  // -- Search: `/` goes there; what is found stands above the page --------------------------------
  const box = document.querySelector(".docs .search input");
  const place = document.querySelector("[data-found]");
  let asked = 0, timer;

  function show(results, word) {
    const list = element("ul");
    for (const result of results) {
      const link = element("a", result.title);
      link.href = result.url;
      link.append(element("span", result.hint, "fine mono"));
      const item = element("li");
      item.append(link);
      list.append(item);
    }
    place.replaceChildren(results.length ? list : element("p", gettext("Nothing has “%(word)s”.", { word }), "soft"));
    place.hidden = false;
  }

  async function find() {
    const word = box.value.trim();
    const mine = ++asked;
    if (word.length < 2) { place.hidden = true; return; }
    try {
      const answer = await fetch(`${box.form.action}?q=${encodeURIComponent(word)}`, { headers: { Accept: "application/json" } });
      if (mine !== asked) return;
      if (!answer.ok) throw new Error();
      show((await answer.json()).results, word);
    } catch {
      if (mine === asked) place.replaceChildren(element("p", gettext("The gateway did not answer. Press Enter to ask again."), "soft"));
    }
  }

  if (box && place) {
    box.addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(find, 150); });
    place.addEventListener("click", (event) => { if (event.target.closest("a")) place.hidden = true; });
    addEventListener("keydown", (event) => {
      const typing = /^(input|textarea|select)$/i.test(event.target.tagName || "");
      if (event.key === "/" && !typing) { event.preventDefault(); box.focus(); }
      if (event.key === "Escape" && !place.hidden) { place.hidden = true; box.focus(); }
      if (event.key === "ArrowDown" && document.activeElement === box && !place.hidden) {
        event.preventDefault();
        place.querySelector("a")?.focus();
      }
    });
  }

  // -- Samples in the reader's language -----------------------------------------------------------
  const languages = [["curl", "curl"], ["python", "Python"], ["javascript", "JavaScript"]];
  let chosen = localStorage.getItem("language") || "curl";
  if (!languages.some(([id]) => id === chosen)) chosen = "curl";

  function choose(language) {
    chosen = language;
    localStorage.setItem("language", language);
    for (const sample of document.querySelectorAll("[data-language].code")) sample.hidden = sample.dataset.language !== language;
    for (const button of document.querySelectorAll("[data-choose]")) {
      if (button.dataset.choose === language) button.setAttribute("aria-current", "true");
      else button.removeAttribute("aria-current");
    }
  }

  for (const examples of document.querySelectorAll(".examples")) {
    const tabs = element("div", "", "tabs");
    tabs.setAttribute("role", "group");
    tabs.setAttribute("aria-label", gettext("Language of the examples"));
    for (const [id, title] of languages) {
      const button = element("button", title);
      button.type = "button";
      button.dataset.choose = id;
      button.onclick = () => choose(id);
      tabs.append(button);
    }
    examples.prepend(tabs);
  }
  if (document.querySelector(".examples")) choose(chosen);

  // -- A key of the reader's, in this page alone ---------------------------------------------------
  const form = document.querySelector("[data-key-form]");
  if (form) {
    form.hidden = false;
    const given = document.querySelector("#one-call").textContent.match(/X-API-Key: ([^"]*)"/)[1];
    let last = given;
    form.querySelector("input").addEventListener("input", (event) => {
      const next = event.target.value.trim() || given;
      for (const code of document.querySelectorAll("pre code")) code.textContent = code.textContent.replaceAll(last, next);
      last = next;
    });
    form.addEventListener("submit", (event) => event.preventDefault());
  }
});
