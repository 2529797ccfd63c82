// Renders /openapi.json. Text is only ever set as text, so nothing in the document becomes markup.
"use strict";

function element(tag, attributes, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) made.setAttribute(name, value);
  for (const child of children.flat()) made.append(child);
  return made;
}

// `code` spans in descriptions.
function prose(text) {
  return (text || "").split("`").map((part, index) => (index % 2 ? element("code", {}, part) : part));
}

function typeOf(schema) {
  if (!schema || Object.keys(schema).length === 0) return ["any"];
  if (schema.$ref) {
    const name = schema.$ref.split("/").pop();
    return [element("a", { href: "#schema-" + name }, name)];
  }
  const choices = schema.anyOf || schema.oneOf;
  if (choices) return choices.flatMap((choice, index) => (index ? [" or ", ...typeOf(choice)] : typeOf(choice)));
  if (schema.enum) return [schema.enum.map((word) => JSON.stringify(word)).join(" | ")];
  if ("const" in schema) return [JSON.stringify(schema.const)];
  if (schema.type === "array") {
    const items = schema.prefixItems ? schema.prefixItems.flatMap((one) => [...typeOf(one), ", "]).slice(0, -1) : typeOf(schema.items);
    return ["list of ", ...items];
  }
  if (schema.type === "object" && schema.additionalProperties) return ["map to ", ...typeOf(schema.additionalProperties)];
  const limits = ["minimum", "exclusiveMinimum", "maximum", "minLength", "maxLength", "pattern"]
    .filter((key) => key in schema)
    .map((key) => `${key} ${schema[key]}`);
  const type = [schema.type, schema.format].filter(Boolean).join(", ");
  return [type + (limits.length ? ` (${limits.join(", ")})` : "")];
}

function table(heads, rows) {
  return element("table", {},
    element("tr", {}, heads.map((head) => element("th", {}, head))),
    rows.map((row) => element("tr", {}, row.map((cell) => element("td", {}, cell)))));
}

function parameters(list) {
  return table(["parameter", "in", "type", ""], list.map((one) => [
    element("code", {}, one.name), one.in, typeOf(one.schema),
    [...prose(one.description), (one.schema.default ?? null) !== null ? ` Default ${JSON.stringify(one.schema.default)}.` : ""],
  ]));
}

function responses(all, components) {
  return table(["status", "", "body"], Object.entries(all).map(([status, one]) => {
    const shown = one.$ref ? components.responses[one.$ref.split("/").pop()] : one;
    const bodies = Object.entries(shown.content || {}).flatMap(([media, what]) => [
      element("code", {}, media), " ", ...typeOf(what.schema), element("br")]);
    return [element("span", { class: "status" }, status), prose(shown.description), bodies];
  }));
}

function operation(method, path, one, components) {
  const parts = [element("summary", {}, element("span", { class: "method" }, method.toUpperCase()), element("code", {}, path), " ", prose(one.summary))];
  if (one.description) parts.push(element("p", {}, prose(one.description)));
  if (one.parameters) parts.push(parameters(one.parameters));
  if (one.requestBody) {
    for (const [media, body] of Object.entries(one.requestBody.content))
      parts.push(element("p", {}, "Body: ", element("code", {}, media), " ", ...typeOf(body.schema)));
  }
  parts.push(responses(one.responses, components));
  return element("details", { id: one.operationId }, parts);
}

function schema(name, one) {
  const required = new Set(one.required || []);
  const rows = Object.entries(one.properties || {}).map(([key, value]) => [
    [element("code", {}, key), required.has(key) ? "" : element("span", { class: "note" }, " optional")],
    typeOf(value),
    [...prose(value.description), (value.default ?? null) !== null ? ` Default ${JSON.stringify(value.default)}.` : ""],
  ]);
  return element("section", { id: "schema-" + name },
    element("h3", {}, name), element("p", {}, prose(one.description)),
    rows.length ? table(["field", "type", ""], rows) : typeOf(one));
}

async function show() {
  const about = document.getElementById("about");
  const answer = await fetch("/openapi.json");
  if (!answer.ok) throw new Error(`/openapi.json answered ${answer.status}`);
  const api = await answer.json();
  about.textContent = `Version ${api.info.version}. ${api.info.description}`;
  const operations = document.getElementById("operations");
  const contents = element("ul");
  for (const tag of api.tags) {
    operations.append(element("h2", {}, tag.name));
    for (const [path, methods] of Object.entries(api.paths)) {
      for (const [method, one] of Object.entries(methods)) {
        if (!one.tags.includes(tag.name)) continue;
        operations.append(operation(method, path, one, api.components));
        contents.append(element("li", {}, element("a", { href: "#" + one.operationId }, `${method.toUpperCase()} ${path}`)));
      }
    }
  }
  document.getElementById("contents").append(contents);
  const schemas = document.getElementById("schemas");
  for (const [name, one] of Object.entries(api.components.schemas)) schemas.append(schema(name, one));
  const open = () => {
    const target = document.getElementById(location.hash.slice(1));
    if (target instanceof HTMLDetailsElement) target.open = true;
    if (target) target.scrollIntoView();
  };
  addEventListener("hashchange", open);
  open();
}

show().catch((error) => { document.getElementById("about").textContent = `The page cannot be shown: ${error.message}`; });
