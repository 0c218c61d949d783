// report_style.c - the style sheet of a report: colours for light and dark screens, tables,
// figures, print. Classes of what is inside of figures: plot_svg.h.
#include "plot_svg.h"
#include "report.h"

// Shades of heat maps, the smallest first; of those around 0 from below to above.
static const char *const shades[PLOT_SHADES] = {"#440154", "#482173", "#433e85", "#38598c",
                                                "#2d708e", "#25858e", "#1e9b8a", "#2ab07f",
                                                "#52c569", "#86d549", "#c2df23", "#fde725"};
static const char *const signs[PLOT_SHADES] = {"#2166ac", "#3b83bd", "#5fa2cd", "#8bc0dc",
                                               "#b7d7e8", "#dbe9f1", "#fbe3d6", "#f7c3a8",
                                               "#ee9d7d", "#dd7059", "#c6413e", "#b2182b"};
// Of series: those of plot_svg.c, darker or lighter where the ground asks for it.
static const char *const light[PLOT_COLOURS] = {"#0072b2", "#d55e00", "#009e73", "#b8568f",
                                                "#c98a00", "#3c9bd3", "#555555"};
static const char *const dark[PLOT_COLOURS] = {"#4ea8e8", "#ff8547", "#2fc596", "#e39bc6",
                                               "#f0b63a", "#93d2f7", "#b0b0b0"};

static const char light_ground[] = "--bg:#ffffff;--card:#ffffff;--fg:#1c1e21;--soft:#62666d;"
                                   "--line:#d9dce1;--grid:#e8eaee;--frame:#9aa0a8;"
                                   "--bad:#d0021b;--restart:#7a3fc0;--tick:#4b5058";
static const char dark_ground[] = "--bg:#15171a;--card:#1c1f23;--fg:#e6e8eb;--soft:#9aa1ab;"
                                  "--line:#34383e;--grid:#2b2f35;--frame:#5b626c;"
                                  "--bad:#ff5a5f;--restart:#b48cf2;--tick:#b8bec7";

static const char page[] =
    "html{color-scheme:light dark;background:var(--bg)}\n"
    "body{margin:1.5rem auto;max-width:1500px;padding:0 1.2rem;color:var(--fg);"
    "font:15px/1.45 system-ui,-apple-system,\"Segoe UI\",\"DejaVu Sans\",Verdana,sans-serif}\n"
    "h1{font-size:1.5rem;margin:0 0 .2rem}\n"
    "h2{font-size:1.1rem;margin:1.8rem 0 .5rem}\n"
    "p{margin:.2rem 0 .8rem}\n"
    ".unit,.soft{color:var(--soft)}\n"
    ".wide{overflow-x:auto}\n"
    "table{border-collapse:collapse;font-variant-numeric:tabular-nums}\n"
    "th,td{text-align:left;vertical-align:top;padding:.22rem .9rem .22rem 0;"
    "border-bottom:1px solid var(--line)}\n"
    "th{font-weight:600}\n"
    "tbody th{color:var(--soft);font-weight:400;white-space:nowrap}\n"
    ".long td{white-space:nowrap}\n"
    ".long td:last-child{white-space:normal;overflow-wrap:anywhere}\n"
    "tr.bad td{color:var(--bad)}\n"
    "details{margin:.6rem 0}\n"
    "summary{cursor:pointer}\n"
    "pre{overflow-x:auto;padding:.8rem;border:1px solid var(--line);border-radius:6px;"
    "font-size:.82rem}\n";

static const char figures[] =
    ".figures{display:grid;gap:1rem 1.2rem;"
    "grid-template-columns:repeat(auto-fit,minmax(min(480px,100%),1fr))}\n"
    "figure{margin:0;padding:.6rem .8rem .3rem;border:1px solid var(--line);border-radius:6px;"
    "background:var(--card);break-inside:avoid;min-width:0;display:flex;flex-direction:column;"
    "justify-content:space-between}\n"
    "figcaption{font-size:.86rem;margin-bottom:.3rem}\n"
    "figcaption b{font-size:.95rem;margin-right:.3rem}\n"
    "figcaption .unit{margin-right:.8rem}\n"
    ".key{display:inline-block;margin-right:.9rem;white-space:nowrap}\n"
    ".key svg{margin:0 .35rem 0 0;vertical-align:-1px}\n"
    ".scale svg{margin:0 .35rem}\n"
    ".plot{width:100%;height:auto;display:block;overflow:visible;font-size:12px}\n"
    ".plot text{fill:var(--soft)}\n"
    ".grid{stroke:var(--grid);fill:none}\n"
    ".frame{stroke:var(--frame);fill:none}\n"
    ".ref{stroke:var(--soft);fill:var(--soft)}\n"
    ".line,.thin,path.cross{fill:none;stroke-width:1.8;stroke-linejoin:round}\n"
    ".thin{stroke-width:1;opacity:.38}\n"
    ".band{stroke:none;opacity:.28}\n"
    ".mark{stroke:var(--card);stroke-width:1}\n"
    ".label{font-size:12px}\n"
    "path.cross{stroke-width:1.4}\n"
    ".m0{fill:var(--tick)}.m1{stroke:var(--tick)}.m2{stroke:var(--restart)}.m3{stroke:var(--bad)}"
    "\n";

static const char print[] = "@media print{body{max-width:none;margin:0;font-size:11px}"
                            ".figures{grid-template-columns:1fr 1fr}"
                            "*{print-color-adjust:exact;-webkit-print-color-adjust:exact}}\n";

static void colours(FILE *f, const char *const *series, const char *ground) {
    fputs(":root{", f);
    for (int i = 0; i < PLOT_COLOURS; i++) fprintf(f, "--s%d:%s;", i, series[i]);
    fprintf(f, "%s}", ground);
}

void report_style(FILE *f) {
    fputs("<style>\n", f);
    colours(f, light, light_ground);
    fputs("\n@media screen and (prefers-color-scheme: dark){", f);
    colours(f, dark, dark_ground);
    fputs("}\n", f);
    fputs(page, f);
    fputs(figures, f);
    for (int i = 0; i < PLOT_COLOURS; i++)
        fprintf(f, ".s%d{stroke:var(--s%d);fill:var(--s%d)}", i, i, i);
    for (int i = 0; i < PLOT_SHADES; i++)
        fprintf(f, ".h%d{fill:%s}.d%d{fill:%s}", i, shades[i], i, signs[i]);
    fprintf(f, "\n%s</style>\n", print);
}
