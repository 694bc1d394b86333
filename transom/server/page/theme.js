// Light or dark before the first paint. A classic script on purpose: modules run after it.
(function () {
  try {
    const theme = localStorage.getItem("transom.theme");
    if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
  } catch (error) {
    /* storage is switched off: the system's preference holds */
  }
})();
