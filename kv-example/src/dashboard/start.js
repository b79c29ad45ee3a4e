// ---- What runs once everything is there.
const sizes = new ResizeObserver(() => {
  if (status) later(showMap);
  later(drawPlots);
  later(showKeys);
});
for (const id of ["map", "list", "latency", "census"]) sizes.observe($(id));
// Times that pass are told anew.
setInterval(() => { if (sheet && !document.hidden) later(showFacts); }, 1000);
dress();
later(showKeys);
showPage();
stay();
