// What moves: an element with data-live takes its markup from that address, as server-sent events.
// A page that nobody looks at holds no connection, as a browser keeps six for a server.
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

  document.addEventListener("visibilitychange", follow);
  document.addEventListener("htmx:afterSettle", follow);
  window.addEventListener("pagehide", () => [...streams.keys()].forEach(close));
  window.addEventListener("pageshow", follow);
})();
