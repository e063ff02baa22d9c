// The document of a DAG with numbers at its lines; drawings that stay where they were scrolled to.
// No page needs it to work.
(function () {
  "use strict";

  // The document

  function numbersBeside(editor) {
    const area = editor.querySelector("textarea");
    const numbers = document.createElement("pre");
    numbers.className = "cm-numbers";
    numbers.setAttribute("aria-hidden", "true");
    editor.prepend(numbers);

    function count() {
      const lines = area.value.split("\n").length;
      numbers.textContent = Array.from({ length: lines }, (_, index) => index + 1).join("\n") + "\n\n";
      follow();
    }

    function follow() {
      numbers.scrollTop = area.scrollTop;
      numbers.style.height = area.offsetHeight + "px";
    }

    area.addEventListener("input", count);
    area.addEventListener("scroll", follow);
    new ResizeObserver(follow).observe(area);
    count();
  }

  function show(line) {
    const area = document.querySelector("[data-cm-editor] textarea");
    const lines = area.value.split("\n");
    const before = lines.slice(0, line - 1).join("\n").length + (line > 1 ? 1 : 0);
    area.focus();
    area.setSelectionRange(before, before + (lines[line - 1] || "").length);
    area.scrollTop = (line - 4) * 20;
  }

  document.addEventListener("DOMContentLoaded", function () {
    document.querySelectorAll("[data-cm-editor]").forEach(numbersBeside);
  });

  document.addEventListener("click", function (event) {
    const button = event.target.closest("[data-cm-line]");
    if (button) show(Number(button.dataset.cmLine));
  });

  // Drawings

  const SCROLLED = "[id$=-scroll]";
  let places = {};

  document.addEventListener("htmx:beforeSwap", function () {
    document.querySelectorAll(SCROLLED).forEach(function (each) {
      places[each.id] = [each.scrollLeft, each.scrollTop];
    });
  });

  document.addEventListener("htmx:afterSettle", function () {
    document.querySelectorAll(SCROLLED).forEach(function (each) {
      if (places[each.id]) [each.scrollLeft, each.scrollTop] = places[each.id];
    });
    places = {};
  });
})();
