// What moves: an element with data-live takes its markup from that address, as server-sent events.
// A page that nobody looks at holds no connection, as a browser keeps six for a server.
// An element with data-poll is asked for anew every few seconds, and what else came with it where that stands.
(() => {
  "use strict";
  const streams = new Map();

  function open(element) {
    const source = new EventSource(element.dataset.live);
    source.addEventListener("message", (event) => {
      Idiomorph.morph(element, event.data, { morphStyle: "innerHTML", ignoreActiveValue: true });
      htmx.process(element);
    });
    streams.set(element, source);
  }

  function close(element) {
    streams.get(element)?.close();
    streams.delete(element);
  }

  function follow() {
    for (const element of [...streams.keys()]) {
      if (document.hidden || !element.isConnected) close(element);
    }
    if (document.hidden) return;
    for (const element of document.querySelectorAll("[data-live]")) {
      if (!streams.has(element)) open(element);
    }
  }

  async function refresh(element) {
    const answer = await fetch(element.dataset.poll, { headers: { "HX-Request": "true" } });
    if (!answer.ok) return;
    const found = document.createElement("template");
    found.innerHTML = await answer.text();
    // Meanwhile another page of the list may have taken its place.
    if (!element.isConnected) return;
    const said = found.content.querySelector("#answers-said");
    const old = document.getElementById("answers-said");
    if (said && old && said.textContent !== old.textContent) old.textContent = said.textContent;
    said?.remove();
    const next = found.content.getElementById(element.id);
    Idiomorph.morph(element, next.outerHTML, { morphStyle: "outerHTML", ignoreActiveValue: true });
    htmx.process(document.getElementById(element.id));
  }

  async function poll() {
    try {
      if (!document.hidden) await Promise.all([...document.querySelectorAll("[data-poll]")].map(refresh));
    } catch {
      // The server will come back, and the list is as it was.
    }
    setTimeout(poll, 3000);
  }

  setTimeout(poll, 3000);
  document.addEventListener("visibilitychange", follow);
  document.addEventListener("htmx:afterSettle", follow);
  window.addEventListener("pagehide", () => [...streams.keys()].forEach(close));
  window.addEventListener("pageshow", follow);
})();
