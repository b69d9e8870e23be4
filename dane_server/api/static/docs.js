// validatorUrl: null, or the page would ask a site on the internet whether the contract is valid.
SwaggerUIBundle({
  url: "/DANE/openapi.json",
  dom_id: "#docs",
  deepLinking: true,
  validatorUrl: null,
  presets: [SwaggerUIBundle.presets.apis],
  layout: "BaseLayout",
});
