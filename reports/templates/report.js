// Sorting, and which section the reader is in. Without it the page shows the same, in the order of the suite.
{
  const collator = new Intl.Collator("en", { numeric: true });
  const value = (cell) => cell.dataset.value ?? cell.textContent.trim();
  const numeric = (texts) => texts.every((text) => text === "" || !Number.isNaN(Number(text)));

  const sorted = (rows, place, sign) => {
    const texts = new Map(rows.map((row) => [row, value(row.cells[place])]));
    const byNumber = numeric([...texts.values()]);
    return [...rows].sort((one, other) => {
      const [a, b] = [texts.get(one), texts.get(other)];
      if (a === "" || b === "") return (a === "") - (b === ""); // empty cells last, whichever way
      return sign * (byNumber ? Number(a) - Number(b) : collator.compare(a, b)); // ties stay in the suite's order
    });
  };

  const sortable = (table) => {
    const [body, heads] = [table.tBodies[0], [...table.tHead.rows[0].cells]];
    const rows = [...body.rows];
    if (rows.length < 2) return;
    const next = { none: "ascending", ascending: "descending", descending: "none" };
    heads.forEach((head, place) => {
      const button = document.createElement("button");
      button.type = "button";
      button.className = "sort";
      button.append(...head.childNodes);
      head.append(button);
      head.setAttribute("aria-sort", "none");
      button.addEventListener("click", () => {
        const way = next[head.getAttribute("aria-sort")];
        heads.forEach((each) => each.setAttribute("aria-sort", each === head ? way : "none"));
        body.append(...(way === "none" ? rows : sorted(rows, place, way === "ascending" ? 1 : -1)));
      });
    });
  };
  document.querySelectorAll("table").forEach(sortable);

  const links = [...document.querySelectorAll("nav a")];
  const bar = document.querySelector("nav");
  const mark = () => {
    const line = bar.getBoundingClientRect().bottom + 24;
    const passed = links.filter((link) => document.querySelector(link.hash).getBoundingClientRect().top <= line);
    const ended = innerHeight + scrollY >= document.documentElement.scrollHeight - 2;
    const current = ended ? links.at(-1) : passed.at(-1);
    for (const link of links) {
      if (link !== current) link.removeAttribute("aria-current");
      else if (!link.hasAttribute("aria-current")) {
        link.setAttribute("aria-current", "true");
        // Only the bar moves: scrollIntoView would move the page as well.
        bar.scrollTo({ left: link.offsetLeft - (bar.clientWidth - link.offsetWidth) / 2 });
      }
    }
  };
  addEventListener("scroll", mark, { passive: true });
  mark();
}
