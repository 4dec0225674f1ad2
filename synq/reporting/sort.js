"use strict";
const find = (query, root = document) => root.querySelector(query);
const all = (query, root = document) => [...root.querySelectorAll(query)];

// Every heading of a sortable table is a button that sorts its rows.
const ordered = (a, b) => a.localeCompare(b, "en", { numeric: true });
const sortable = (table) => {
  const body = find("tbody", table);
  const heads = all("thead th", table);
  heads.forEach((head, column) => find("button", head).addEventListener("click", () => {
    const next = head.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
    heads.forEach((other) => other.setAttribute("aria-sort", "none"));
    head.setAttribute("aria-sort", next);
    const value = (row) => row.cells[column].dataset.sort;
    const compare = (a, b) => {
      const [x, y] = [value(a), value(b)];
      // What is not known comes last, either way.
      if (x === "" || y === "") return (x === "") - (y === "");
      const numbers = x - y;
      const order = Number.isNaN(numbers) ? ordered(x, y) : numbers;
      return next === "ascending" ? order : -order;
    };
    body.append(...[...body.rows].sort(compare));
  }));
};
all("table.sortable").forEach(sortable);
