// Names for what Django's and select2's scripts draw without one.
(() => {
  const name = (element, label) => {
    element.removeAttribute("aria-labelledby");
    element.setAttribute("aria-label", label);
  };

  const mend = () => {
    for (const icon of document.querySelectorAll(".search-label-icon")) icon.setAttribute("role", "img");
    for (const box of document.querySelectorAll("select.select2-hidden-accessible")) {
      const label = document.querySelector(`label[for="${box.id}"]`);
      const drawn = box.nextElementSibling;
      if (!label || !drawn) continue;
      const words = label.textContent.trim().replace(/:$/, "");
      for (const part of drawn.querySelectorAll("[role=combobox], [role=textbox]")) name(part, words);
    }
  };

  // After what they do when the page is there, and for each row that is added.
  addEventListener("load", () => setTimeout(mend));
  document.addEventListener("formset:added", () => setTimeout(mend));
})();
