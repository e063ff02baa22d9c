// Copying ids, times that go on counting, a log that stays at its end. No page needs it to work.
(function () {
  "use strict";

  const MOST_LOG_PIECES = 4000;

  // Ids

  function copy(text) {
    if (navigator.clipboard && window.isSecureContext) {
      return navigator.clipboard.writeText(text);
    }
    const field = document.createElement("textarea");
    field.value = text;
    document.body.append(field);
    field.select();
    document.execCommand("copy");
    field.remove();
    return Promise.resolve();
  }

  document.addEventListener("click", function (event) {
    const button = event.target.closest("[data-cm-copy]");
    if (!button) return;
    copy(button.dataset.cmCopy).then(function () {
      button.classList.add("cm-copied");
      setTimeout(() => button.classList.remove("cm-copied"), 1500);
    });
  });

  // Times: written as showing.span writes them

  function span(seconds) {
    if (seconds < 9.95) return seconds.toFixed(1) + " s";
    const whole = Math.round(seconds);
    const minutes = Math.floor(whole / 60) % 60;
    const hours = Math.floor(whole / 3600) % 24;
    const days = Math.floor(whole / 86400);
    const two = (number) => String(number).padStart(2, "0");
    if (days) return days + " d " + hours + " h";
    if (hours) return hours + " h " + two(minutes) + " min";
    return minutes ? minutes + " min " + two(whole % 60) + " s" : whole + " s";
  }

  // The server's clock, as far as this page knows it: people's clocks are often wrong.
  let ahead = 0;

  function write(time) {
    const passed = Math.round((Date.now() - ahead - Date.parse(time.dateTime)) / 1000);
    const shown = "cmSince" in time.dataset ? span(Math.max(0, passed))
      : passed < 0 ? "in " + span(-passed)
      : passed < 1 ? "just now" : span(passed) + " ago";
    if (time.textContent !== shown) time.textContent = shown;
  }

  setInterval(function () {
    document.querySelectorAll("[data-cm-ago], [data-cm-since]").forEach(write);
  }, 1000);

  // The log

  function text() {
    return document.getElementById("cm-log-text");
  }

  let atEnd = true;

  function toEnd() {
    if (text()) text().scrollTop = text().scrollHeight;
  }

  function shorten() {
    while (text() && text().childNodes.length > MOST_LOG_PIECES) text().firstChild.remove();
  }

  document.addEventListener("htmx:beforeSwap", function () {
    const log = text();
    atEnd = !log || log.scrollHeight - log.scrollTop - log.clientHeight < 40;
  });

  document.addEventListener("htmx:afterSettle", function () {
    if (atEnd) {
      shorten();
      toEnd();
    }
  });

  document.addEventListener("DOMContentLoaded", toEnd);

  // The server

  function away(is) {
    document.body.classList.toggle("cm-away", is);
  }

  document.addEventListener("htmx:sendError", () => away(true));
  document.addEventListener("htmx:responseError", (event) => away(event.detail.xhr.status >= 500));
  document.addEventListener("htmx:afterOnLoad", function (event) {
    away(false);
    const sent = Date.parse(event.detail.xhr.getResponseHeader("Date") || "");
    if (sent && Math.abs(Date.now() - sent) > 5000) ahead = Date.now() - sent;
    else ahead = 0;
  });
})();
