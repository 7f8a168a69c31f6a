// The viewer of the HTTP interface. It asks this server alone, and keeps no key.
(() => {
  "use strict";
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const follow = () => document.documentElement.classList.toggle("dark-mode", dark.matches);
  follow();
  dark.addEventListener("change", follow);
  SwaggerUIBundle({
    url: "/docs/openapi.json",
    domNode: document.getElementById("interface"),
    deepLinking: true,
    defaultModelsExpandDepth: -1,
    persistAuthorization: false,
    validatorUrl: null,
  });
})();
