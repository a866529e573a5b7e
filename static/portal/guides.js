// The language that a reader chose in one example is shown in all others, on each page. Without this
// script each example has tabs of its own, which work by the stylesheet.
"use strict";

(() => {
  const KEY = "language";

  function show(label) {
    for (const tab of document.querySelectorAll(".example > input")) {
      if (tab.value === label) tab.checked = true;
    }
    portal.letScroll(document); // what was hidden has a width only now
  }

  const chosen = localStorage.getItem(KEY);
  if (chosen) show(chosen);

  document.addEventListener("change", (event) => {
    const tab = event.target;
    if (!tab.matches(".example > input")) return;
    // What stands above grows or shrinks; the example that was clicked stays where it is.
    const before = tab.parentElement.getBoundingClientRect().top;
    localStorage.setItem(KEY, tab.value);
    show(tab.value);
    scrollBy({ top: tab.parentElement.getBoundingClientRect().top - before, behavior: "instant" });
  });
})();
