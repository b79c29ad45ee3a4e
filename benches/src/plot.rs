//! Plots as SVG, readable in light and in dark surroundings: lines over two axes, each linear or logarithmic.

use std::fmt::Write as _;
use std::path::Path;

/// Where the plots go.
const PLOTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/plots");

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 600.0;
const TOP: f64 = 44.0;
const BOTTOM: f64 = 366.0;
/// Told from each other by people who do not see all colours, on white and on black.
const COLOURS: [&str; 10] = [
    "#0a84d0", "#e0701a", "#1a9e77", "#cc5a9a", "#b39400", "#8a6fd1", "#d1433f", "#7d8a99", "#8f6240",
    "#00a5b5",
];
const STYLE: &str = "svg{font:13px system-ui,sans-serif;--ink:#222;--faint:#ddd;--page:#fff;background:var(--page)}\
    @media(prefers-color-scheme:dark){svg{--ink:#ddd;--faint:#3a3a3a;--page:#16181c}}\
    text{fill:var(--ink)}.page{fill:var(--page)}.grid{stroke:var(--faint)}\
    .axis{stroke:var(--ink);fill:none}.line{fill:none;stroke-width:2}.mark{stroke:var(--ink);stroke-dasharray:3 4}";

/// An axis.
#[derive(Clone, Debug)]
pub struct Axis {
    name: String,
    is_log: bool,
}

impl Axis {
    /// From zero on.
    pub fn linear(name: &str) -> Self {
        Self { name: name.to_owned(), is_log: false }
    }

    /// In powers of ten.
    pub fn log(name: &str) -> Self {
        Self { name: name.to_owned(), is_log: true }
    }

    fn scaled(&self, at: f64) -> f64 {
        if self.is_log { at.log10() } else { at }
    }

    /// The ends, scaled, and the ticks between them.
    fn ticks(&self, points: impl Iterator<Item = f64>) -> (f64, f64, Vec<f64>) {
        let fits = |at: &f64| at.is_finite() && (!self.is_log || *at > 0.0);
        let (mut low, mut high) =
            points.filter(fits).fold((f64::MAX, f64::MIN), |(low, high), at| (low.min(at), high.max(at)));
        if low > high {
            (low, high) = (1.0, 10.0);
        }
        if !self.is_log {
            let high = if high > 0.0 { high } else { 1.0 };
            let rough = high / 6.0;
            let power = 10_f64.powf(rough.log10().floor());
            let step = [1.0, 2.0, 5.0, 10.0].map(|by| by * power).into_iter().find(|step| *step >= rough);
            let step = step.unwrap_or(rough);
            let ticks: Vec<f64> = (0..=16).map(|i| f64::from(i) * step).collect();
            let end = ticks.iter().copied().find(|tick| *tick >= high).unwrap_or(high);
            return (0.0, end, ticks.into_iter().filter(|tick| *tick <= end).collect());
        }
        let steps: &[f64] = if high / low > 3_000.0 { &[1.0] } else { &[1.0, 3.0] };
        let all = (-9..12).flat_map(|power| steps.iter().map(move |by| by * 10_f64.powi(power)));
        let all: Vec<f64> = all.collect();
        let low = all.iter().copied().filter(|tick| *tick <= low).fold(all[0], f64::max);
        let high = all.iter().copied().find(|tick| *tick >= high && *tick > low).unwrap_or(high);
        let ticks = all.into_iter().filter(|tick| (low..=high).contains(tick)).collect();
        (low.log10(), high.log10(), ticks)
    }
}

/// Lines over two axes.
#[derive(Clone, Debug)]
pub struct Plot {
    title: String,
    axes: [Axis; 2],
    lines: Vec<(String, Vec<(f64, f64)>)>,
    marks: Vec<(f64, String)>,
    has_dots: bool,
}

impl Plot {
    /// An empty plot, with its horizontal and its vertical axis.
    pub fn new(title: &str, x: Axis, y: Axis) -> Self {
        let title = title.to_owned();
        Self { title, axes: [x, y], lines: Vec::new(), marks: Vec::new(), has_dots: true }
    }

    /// A line without a dot at each point, for many points.
    #[must_use]
    pub fn without_dots(mut self) -> Self {
        self.has_dots = false;
        self
    }

    /// Adds a line. One without points is left out; what a logarithmic axis has no place for is none.
    pub fn line(&mut self, name: &str, mut points: Vec<(f64, f64)>) {
        points.retain(|(x, y)| self.axes[0].scaled(*x).is_finite() && self.axes[1].scaled(*y).is_finite());
        if !points.is_empty() {
            self.lines.push((name.to_owned(), points));
        }
    }

    /// Marks a moment on the horizontal axis.
    pub fn mark(&mut self, at: f64, name: &str) {
        self.marks.push((at, name.to_owned()));
    }

    /// Draws it.
    pub fn svg(&self) -> String {
        let points = || self.lines.iter().flat_map(|(_, points)| points.iter().copied());
        let (left, right, ticks_x) = self.axes[0].ticks(points().map(|(x, _)| x));
        let (low, high, ticks_y) = self.axes[1].ticks(points().map(|(_, y)| y));
        let x = |at: f64| LEFT + (self.axes[0].scaled(at) - left) / (right - left) * (RIGHT - LEFT);
        let y = |at: f64| BOTTOM - (self.axes[1].scaled(at) - low) / (high - low) * (BOTTOM - TOP);
        let mut out = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\"><style>{STYLE}</style>\
             <rect class=\"page\" width=\"{WIDTH}\" height=\"{HEIGHT}\"/>\
             <text x=\"{LEFT}\" y=\"24\" font-weight=\"600\" font-size=\"15\">{}</text>\n",
            escaped(&self.title)
        );
        for tick in ticks_x {
            let (at, text) = (x(tick), label(tick));
            _ = writeln!(out, "<path class=\"grid\" d=\"M{at:.1} {TOP}V{BOTTOM}\"/>");
            _ = writeln!(out, "<text x=\"{at:.1}\" y=\"384\" text-anchor=\"middle\">{text}</text>");
        }
        for tick in ticks_y {
            let (at, text) = (y(tick), label(tick));
            _ = writeln!(out, "<path class=\"grid\" d=\"M{LEFT} {at:.1}H{RIGHT}\"/>");
            _ = writeln!(out, "<text x=\"62\" y=\"{:.1}\" text-anchor=\"end\">{text}</text>", at + 4.0);
        }
        _ = writeln!(out, "<path class=\"axis\" d=\"M{LEFT} {TOP}V{BOTTOM}H{RIGHT}\"/>");
        let [name_x, name_y] = [0, 1].map(|i| escaped(&self.axes[i].name));
        let (middle, height) = (f64::midpoint(LEFT, RIGHT), f64::midpoint(TOP, BOTTOM));
        _ = writeln!(out, "<text x=\"{middle}\" y=\"408\" text-anchor=\"middle\">{name_x}</text>");
        let turned = format!("transform=\"rotate(-90 16 {height})\"");
        _ = writeln!(out, "<text x=\"16\" y=\"{height}\" text-anchor=\"middle\" {turned}>{name_y}</text>");
        for (at, name) in &self.marks {
            let at = x(*at);
            _ = writeln!(out, "<path class=\"mark\" d=\"M{at:.1} {TOP}V{BOTTOM}\"/>");
            _ = writeln!(
                out,
                "<text x=\"{:.1}\" y=\"40\" font-size=\"11\">{}</text>",
                at + 3.0,
                escaped(name)
            );
        }
        for (i, (name, points)) in self.lines.iter().enumerate() {
            let colour = COLOURS[i % COLOURS.len()];
            let places = points.iter().map(|(a, b)| format!("{:.1},{:.1}", x(*a), y(*b)));
            let places: Vec<String> = places.collect();
            _ = writeln!(
                out,
                "<polyline class=\"line\" stroke=\"{colour}\" points=\"{}\"/>",
                places.join(" ")
            );
            for (cx, cy) in places.iter().filter(|_| self.has_dots).filter_map(|at| at.split_once(',')) {
                _ = writeln!(out, "<circle cx=\"{cx}\" cy=\"{cy}\" r=\"3.5\" fill=\"{colour}\"/>");
            }
            let at = 22.0_f64.mul_add(f64::from(i as u32), TOP + 10.0);
            _ = writeln!(out, "<path stroke=\"{colour}\" stroke-width=\"3\" d=\"M616 {at}h20\"/>");
            _ = writeln!(out, "<text x=\"642\" y=\"{}\">{}</text>", at + 4.0, escaped(name));
        }
        out + "</svg>\n"
    }

    /// Writes it under this name.
    ///
    /// # Panics
    /// If the folder cannot be written.
    pub fn save(&self, name: &str) {
        std::fs::create_dir_all(PLOTS).expect("the folder can be made");
        let file = format!("{name}.svg");
        std::fs::write(Path::new(PLOTS).join(&file), self.svg()).expect("the folder can be written");
        println!("  plotted: benches/plots/{file}");
    }
}

fn label(tick: f64) -> String {
    match tick {
        tick if tick >= 1e6 => format!("{} M", tick / 1e6),
        tick if tick >= 1e3 => format!("{} k", tick / 1e3),
        // The shortest form of what multiplying left.
        tick => format!("{}", (tick * 1e9).round() / 1e9),
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
