"use strict";
const field = document.getElementById("filter");
const count = document.getElementById("found");
const rows = [...document.querySelectorAll("[data-row]")].map((row) => [row, row.textContent.toLowerCase()]);
field.addEventListener("input", () => {
  const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
  let found = 0;
  for (const [row, text] of rows) {
    const fits = words.every((word) => text.includes(word));
    row.classList.toggle("away", !fits);
    found += fits;
  }
  for (const group of document.querySelectorAll("[data-group]")) {
    group.classList.toggle("away", words.length > 0 && !group.querySelector("[data-row]:not(.away)"));
  }
  count.value = words.length ? `${found} of ${rows.length}` : "";
});
field.parentElement.hidden = false;
