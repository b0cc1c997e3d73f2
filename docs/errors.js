// The box of the error catalogue: of a whole message, names and numbers included, the lines that share most of their words.
const box = document.querySelector("#message");

if (box) {
  const words = (text) => new Set(text.toLowerCase().match(/[a-z_]{2,}/g));
  const lines = [...document.querySelectorAll("article li > code:first-child")]
    .map((code) => ({ code, words: words(code.textContent) }))
    .filter((line) => line.code.parentElement.textContent.includes("(line "));

  box.addEventListener("input", () => {
    const given = words(box.value);
    const score = (line) => [...line.words].filter((word) => given.has(word)).length ** 2 / line.words.size;
    const best = lines.filter((line) => score(line) > 1).sort((a, b) => score(b) - score(a)).slice(0, 5);
    const list = document.querySelector("#found");
    list.replaceChildren(...best.map(({ code }) => {
      const item = document.createElement("li");
      const link = document.createElement("a");
      let heading = code.closest("ul");
      while (heading.tagName !== "H3") heading = heading.previousElementSibling;
      link.href = `#${heading.id}`;
      link.textContent = heading.firstChild.textContent;
      item.append(code.cloneNode(true), " ", link);
      return item;
    }));
  });
}
