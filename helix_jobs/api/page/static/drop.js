// A form with a file takes what is dropped on it, and shows how much of it is sent.
(() => {
  "use strict";
  const form = document.getElementById("drop");
  const input = document.getElementById("file");
  const sent = document.getElementById("sent");

  for (const name of ["dragenter", "dragover"]) {
    form.addEventListener(name, (event) => {
      event.preventDefault();
      form.classList.add("over");
    });
  }
  form.addEventListener("dragleave", (event) => {
    if (!form.contains(event.relatedTarget)) form.classList.remove("over");
  });
  form.addEventListener("drop", (event) => {
    event.preventDefault();
    form.classList.remove("over");
    if (!event.dataTransfer.files.length) return;
    input.files = event.dataTransfer.files;
    form.requestSubmit();
  });
  // Anywhere else, a browser would leave the page for the dropped file.
  for (const name of ["dragover", "drop"]) {
    window.addEventListener(name, (event) => event.preventDefault());
  }

  form.addEventListener("htmx:beforeRequest", () => {
    document.getElementById("refusal").replaceChildren();
    sent.hidden = false;
    sent.value = 0;
  });
  form.addEventListener("htmx:xhr:progress", (event) => {
    if (event.detail.lengthComputable) sent.value = event.detail.loaded / event.detail.total;
  });
  form.addEventListener("htmx:afterRequest", () => {
    sent.hidden = true;
  });
})();
