// The contents at the side, from the headings that there are.
const list = document.querySelector("nav ol"), links = new Map();
for (const heading of document.querySelectorAll("main h2[id], main h3[id]")) {
  const item = document.createElement("li"), link = document.createElement("a");
  item.className = heading.tagName === "H3" ? "sub" : "";
  link.href = "#" + heading.id;
  link.textContent = heading.textContent;
  item.append(link);
  list.append(item);
  links.set(heading, link);
}
const seen = new IntersectionObserver(entries => {
  for (const entry of entries) if (entry.isIntersecting) {
    for (const link of links.values()) link.classList.remove("here");
    links.get(entry.target).classList.add("here");
  }
}, {rootMargin: "0px 0px -70% 0px"});
for (const heading of links.keys()) seen.observe(heading);
if (!matchMedia("(min-width: 75rem)").matches) document.querySelector("nav details").open = false;

// Light or dark, as the reader's system has it, until the reader says otherwise.
const root = document.documentElement, dark = matchMedia("(prefers-color-scheme: dark)");
root.classList.toggle("dark", dark.matches);
dark.addEventListener("change", () => root.classList.toggle("dark", dark.matches));
document.getElementById("theme").addEventListener("click", () => root.classList.toggle("dark"));
