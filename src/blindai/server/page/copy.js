"use strict";
// Over plain HTTP a browser may give no clipboard: then the text is selected, and copied the old way.
const said = document.getElementById("said");
async function copy(element) {
  try {
    await navigator.clipboard.writeText(element.textContent);
    return true;
  } catch {
    getSelection().selectAllChildren(element);
    return document.execCommand("copy");
  }
}
for (const button of document.querySelectorAll("button[data-copies]")) {
  const label = button.textContent;
  button.hidden = false;
  button.addEventListener("click", async () => {
    const done = await copy(document.getElementById(button.dataset.copies));
    button.textContent = done ? "Copied" : "Selected";
    said.textContent = done ? "Copied to the clipboard" : "Selected: copy it with your keyboard";
    setTimeout(() => {
      button.textContent = label;
      said.textContent = "";
    }, 2000);
  });
}
