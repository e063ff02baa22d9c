// Copying ids, times that go on counting, a log that stays at its end. No page needs it to work.
(function () {
  "use strict";

  const MOST_LOG_PIECES = 4000;
  const MOST_LOG_CHARACTERS = 2000000;

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

  // A row that may be out of date does not go on counting as if its job still ran.
  function standsStill(time) {
    return "cmSince" in time.dataset && isStale() && time.closest("#result_list");
  }

  setInterval(function () {
    document.querySelectorAll("[data-cm-ago], [data-cm-since]").forEach(function (time) {
      if (!standsStill(time)) write(time);
    });
  }, 1000);

  // The list: its rows stay as they were loaded, the counts above them do not

  function counts() {
    const shown = document.querySelectorAll(".cm-strip .cm-count b");
    return Array.from(shown, (count) => count.textContent).join(" ");
  }

  let countsBefore = null;

  function isStale() {
    const note = document.getElementById("cm-stale");
    return note !== null && !note.hidden;
  }

  document.addEventListener("DOMContentLoaded", () => { countsBefore = counts(); });

  document.addEventListener("htmx:afterSettle", function () {
    const note = document.getElementById("cm-stale");
    if (note && counts() !== countsBefore) note.hidden = false;
  });

  // Forms: a second click sends nothing

  document.addEventListener("submit", function (event) {
    const form = event.target;
    if (event.defaultPrevented || form.method !== "post" || !form.closest(".cm-page")) return;
    const buttons = form.querySelectorAll("button:not([type=button])");
    setTimeout(() => buttons.forEach((button) => { button.disabled = true; }));
  });

  window.addEventListener("pageshow", function (event) {
    if (!event.persisted) return;
    document.querySelectorAll(".cm-page form button").forEach((button) => { button.disabled = false; });
  });

  // The log

  function text() {
    return document.getElementById("cm-log-text");
  }

  let atEnd = true;

  function toEnd() {
    if (text()) text().scrollTop = text().scrollHeight;
  }

  function isTooLong(log) {
    return log.childNodes.length > MOST_LOG_PIECES || log.textContent.length > MOST_LOG_CHARACTERS;
  }

  function noteOfShortening() {
    const note = document.createElement("span");
    note.className = "cm-missing cm-shortened";
    note.textContent = "… earlier output left this page; the raw downloads have it …\n";
    return note;
  }

  // What was read stays in view while the beginning goes.
  function shorten(log) {
    const height = log.scrollHeight;
    const old = log.querySelector(".cm-shortened");
    if (old) old.remove();
    let length = log.textContent.length;
    while (log.childNodes.length > 1
      && (log.childNodes.length > MOST_LOG_PIECES || length > MOST_LOG_CHARACTERS)) {
      length -= log.firstChild.textContent.length;
      log.firstChild.remove();
    }
    log.prepend(old || noteOfShortening());
    log.scrollTop -= height - log.scrollHeight;
  }

  document.addEventListener("htmx:beforeSwap", function () {
    const log = text();
    atEnd = !log || log.scrollHeight - log.scrollTop - log.clientHeight < 40;
  });

  document.addEventListener("htmx:afterSettle", function () {
    if (text() && isTooLong(text())) shorten(text());
    if (atEnd) toEnd();
  });

  document.addEventListener("DOMContentLoaded", toEnd);

  // The server

  function away(is) {
    document.body.classList.toggle("cm-away", is);
  }

  document.addEventListener("htmx:sendError", () => away(true));
  // A page that nobody looks at asks nothing; it goes on where it was when it is looked at again.
  document.addEventListener("htmx:beforeRequest", function (event) {
    const when = event.detail.elt.getAttribute("hx-trigger") || "";
    if (document.hidden && when.startsWith("every")) event.preventDefault();
  });

  // The rights were taken away, or the job was pruned: asking again would never end.
  function stopAsking(element) {
    const still = element.cloneNode(true);
    still.removeAttribute("hx-get");
    still.removeAttribute("hx-trigger");
    element.replaceWith(still);
    document.body.classList.add("cm-gone");
  }

  document.addEventListener("htmx:responseError", function (event) {
    const status = event.detail.xhr.status;
    away(status >= 500);
    if (status === 403 || status === 404) stopAsking(event.detail.elt);
  });
  document.addEventListener("htmx:afterOnLoad", function (event) {
    away(false);
    const sent = Date.parse(event.detail.xhr.getResponseHeader("Date") || "");
    if (sent && Math.abs(Date.now() - sent) > 5000) ahead = Date.now() - sent;
    else ahead = 0;
  });
})();
