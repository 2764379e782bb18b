//! The map as a picture: one SVG without anything from elsewhere.
//!
//! ```text
//!          · ·                 this node in the middle, its machines around it;
//!        ·  o  ·               neighbours on a ring, at angles in proportion to
//!           │                  how many are reached through each; those behind it
//!   · ·  o──■──o               in rows further out, in the same sector
//! ```
//!
//! Angles go by numbers, so a picture of three nodes and one of three hundred are read alike; with
//! many, keys are left to the tool tips (`<title>`).

use std::f64::consts::TAU;

use super::{Map, Neighbour, cost, kind, line, link_time, short};

/// The least distance between two dots, and between two with words below them, in pixels.
const NEAR: f64 = 15.0;
const NEAR_WORDS: f64 = 84.0;
/// How many dots have words.
const WORDS_MAX: usize = 40;
/// How far the machines are from the middle, and the neighbours at least.
const ATTACHED_RADIUS: f64 = 56.0;
const RING_RADIUS: f64 = 150.0;
/// From the ring to the first row behind it.
const GAP: f64 = 80.0;
const MARGIN: f64 = 60.0;
const LEGEND: f64 = 44.0;
/// How wide a zone is in the legend: "zone 65535" and its dot.
const ZONE_WIDTH: f64 = 90.0;
/// Okabe and Ito's colours, which people tell apart who see red and green alike.
const COLOURS: [&str; 8] =
    ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#8a7f00", "#555555"];
const STYLE: &str = "text{font:11px ui-monospace,monospace;fill:#222;text-anchor:middle;\
     paint-order:stroke;stroke:#fff;stroke-width:3px}\
     line{stroke:#999;stroke-width:1.5}.far{stroke:#ccc;stroke-width:1}\
     .down{stroke-dasharray:3 4}.here{fill:#fff;stroke:#222;stroke-width:1.5}\
     .note{text-anchor:start}";

/// Where something is, from the middle.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Place {
    pub x: f64,
    pub y: f64,
}

impl Place {
    fn at(radius: f64, angle: f64) -> Self {
        Self { x: radius * angle.cos(), y: radius * angle.sin() }
    }
}

/// Where everything is.
#[derive(Debug)]
pub(super) struct Layout {
    pub attached: Vec<Place>,
    /// Each neighbour, and those behind it.
    pub neighbours: Vec<(Place, Vec<Place>)>,
    /// The distance of what is farthest.
    pub radius: f64,
    has_words: bool,
}

impl Layout {
    /// Gives every neighbour a sector of the circle.
    pub(super) fn new(map: &Map) -> Self {
        let behind: usize = map.neighbours.iter().map(|it| it.behind.len()).sum();
        let dots = behind + map.neighbours.len();
        let has_words = dots + map.attached.len() <= WORDS_MAX;
        let near = if has_words { NEAR_WORDS } else { NEAR };
        let attached_radius = ATTACHED_RADIUS.max(near * map.attached.len() as f64 / TAU);
        // Half of the circle goes by heads, half is shared alike.
        let share = |neighbour: &Neighbour| {
            let alike = 1.0 / map.neighbours.len() as f64;
            let by_heads = (1 + neighbour.behind.len()) as f64 / dots as f64;
            TAU * (alike + by_heads) / 2.0
        };
        let narrowest = map.neighbours.iter().map(share).fold(TAU, f64::min);
        let ring = (attached_radius + near).max(RING_RADIUS).max(near / narrowest);
        let mut radius = ring;
        let mut from = -TAU / 4.0;
        let mut neighbours = Vec::with_capacity(map.neighbours.len());
        for neighbour in &map.neighbours {
            let angle = share(neighbour);
            let rows = rows(neighbour.behind.len(), ring + GAP, (from, angle), near);
            let far = |row: &Place| row.x.hypot(row.y);
            radius = rows.iter().map(far).fold(radius, f64::max);
            neighbours.push((Place::at(ring, from + angle / 2.0), rows));
            from += angle;
        }
        let count = map.attached.len();
        let turn = |it: usize| TAU * (it as f64 + 0.5) / count as f64;
        let attached = (0..count).map(|it| Place::at(attached_radius, turn(it))).collect();
        Self { attached, neighbours, radius, has_words }
    }
}

/// Rows of dots in a sector, beginning at a radius.
fn rows(count: usize, first: f64, (from, angle): (f64, f64), near: f64) -> Vec<Place> {
    let mut places = Vec::with_capacity(count);
    let mut radius = first;
    while places.len() < count {
        let room = ((radius * angle / near) as usize).max(1);
        let here = room.min(count - places.len());
        let step = angle / here as f64;
        places.extend((0..here).map(|it| Place::at(radius, from + step * (it as f64 + 0.5))));
        radius += near.min(40.0);
    }
    places
}

/// Draws a map.
pub(crate) fn draw(map: &Map) -> String {
    let layout = Layout::new(map);
    let half = layout.radius + MARGIN;
    let (left, side) = (-half, 2.0 * half);
    let mut svg = String::new();
    line(
        &mut svg,
        format_args!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" \
             viewBox=\"{left:.0} {left:.0} {side:.0} {:.0}\" role=\"img\">",
            side + LEGEND
        ),
    );
    let nodes = map.neighbours.len();
    let behind: usize = map.neighbours.iter().map(|it| it.behind.len()).sum();
    let all = format!(
        "{nodes} neighbours, {behind} behind them, {} attached, {} unreachable",
        map.attached.len(),
        map.unreachable.len()
    );
    let key = escape(&short(&map.key));
    line(&mut svg, format_args!("<title>The mesh as {key} sees it: {all}</title>"));
    line(&mut svg, format_args!("<style>{STYLE}</style>"));
    let height = side + LEGEND;
    line(
        &mut svg,
        format_args!(
            "<rect x=\"{left:.0}\" y=\"{left:.0}\" width=\"{side:.0}\" height=\"{height:.0}\" \
             fill=\"#fff\"/>"
        ),
    );
    lines(&mut svg, map, &layout);
    dots(&mut svg, map, &layout);
    legend(&mut svg, map, half, &all);
    svg.push_str("</svg>\n");
    svg
}

fn lines(svg: &mut String, map: &Map, layout: &Layout) {
    let middle = Place { x: 0.0, y: 0.0 };
    for place in &layout.attached {
        stroke(svg, "near", middle, *place);
    }
    for (neighbour, (place, behind)) in map.neighbours.iter().zip(&layout.neighbours) {
        behind.iter().for_each(|far| stroke(svg, "far", *place, *far));
        stroke(svg, if neighbour.is_usable { "near" } else { "down" }, middle, *place);
    }
}

fn stroke(svg: &mut String, class: &str, from: Place, to: Place) {
    line(
        svg,
        format_args!(
            "<line class=\"{class}\" x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\"/>",
            from.x, from.y, to.x, to.y
        ),
    );
}

/// One dot: what it looks like, what its tool tip says, and the words below it.
struct Dot<'a> {
    shape: Shape,
    tip: &'a str,
    words: &'a [String],
}

#[derive(Clone, Copy)]
enum Shape {
    /// A node of a zone, with this radius.
    Node(u16, f64),
    /// A workload, wherever it is.
    Workload,
}

fn dots(svg: &mut String, map: &Map, layout: &Layout) {
    for (member, place) in map.attached.iter().zip(&layout.attached) {
        let tip = format!("{}, attached here", member.key);
        let words = [member.label()];
        dot(svg, *place, layout, &Dot { shape: Shape::Workload, tip: &tip, words: &words });
    }
    for (neighbour, (place, behind)) in map.neighbours.iter().zip(&layout.neighbours) {
        for (member, place) in neighbour.behind.iter().zip(behind) {
            let tip = format!("{}, {}, {}", member.key, kind(member.zone), cost(member.cost_us));
            let shape = member.zone.map_or(Shape::Workload, |zone| Shape::Node(zone, 5.0));
            dot(svg, *place, layout, &Dot { shape, tip: &tip, words: &[short(&member.key)] });
        }
        let time = link_time(neighbour);
        let tip = format!("{}, zone {}, {time}", neighbour.key, neighbour.zone);
        let words = [short(&neighbour.key), time];
        let shape = Shape::Node(neighbour.zone, if layout.has_words { 8.0 } else { 6.0 });
        dot(svg, *place, layout, &Dot { shape, tip: &tip, words: &words });
    }
    let tip = format!("{}, this node, zone {}", map.key, map.zone);
    let shape = Shape::Node(map.zone, 12.0);
    dot(
        svg,
        Place { x: 0.0, y: 0.0 },
        layout,
        &Dot { shape, tip: &tip, words: &[short(&map.key)] },
    );
}

fn dot(svg: &mut String, at: Place, layout: &Layout, dot: &Dot<'_>) {
    let (x, y) = (at.x, at.y);
    let shape = match dot.shape {
        Shape::Node(zone, radius) => {
            format!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{radius}\" fill=\"{}\"", colour(zone))
        }
        Shape::Workload => format!(
            "<rect class=\"here\" x=\"{:.1}\" y=\"{:.1}\" width=\"9\" height=\"9\"",
            x - 4.5,
            y - 4.5
        ),
    };
    let tip = escape(dot.tip);
    line(svg, format_args!("<g>{shape}/><title>{tip}</title></g>"));
    let below = match dot.shape {
        Shape::Node(_, radius) => radius + 12.0,
        Shape::Workload => 17.0,
    };
    for (number, words) in dot.words.iter().enumerate().filter(|_| layout.has_words) {
        let y = y + below + 12.0 * number as f64;
        line(svg, format_args!("<text x=\"{x:.1}\" y=\"{y:.1}\">{}</text>", escape(words)));
    }
}

/// Which colour is which zone, and what is there in all.
fn legend(svg: &mut String, map: &Map, half: f64, all: &str) {
    let zones = map.zones();
    let (x, middle) = (16.0 - half, half + 22.0);
    let mut at = x;
    // Room is left for the last words.
    let room = (2.0 * half - 120.0) / ZONE_WIDTH;
    let shown = zones.len().min(room as usize);
    for zone in zones.iter().take(shown) {
        let fill = colour(*zone);
        let words = format!("zone {zone}");
        line(
            svg,
            format_args!(
                "<circle cx=\"{at:.1}\" cy=\"{middle:.1}\" r=\"5\" fill=\"{fill}\"/>\
                 <text class=\"note\" x=\"{:.1}\" y=\"{:.1}\">{words}</text>",
                at + 10.0,
                middle + 4.0
            ),
        );
        at += ZONE_WIDTH;
    }
    if zones.len() > shown {
        let more = zones.len() - shown;
        line(
            svg,
            format_args!(
                "<text class=\"note\" x=\"{at:.1}\" y=\"{:.1}\">and {more} more</text>",
                middle + 4.0
            ),
        );
    }
    let y = middle + 24.0;
    let x = x - 5.0;
    line(svg, format_args!("<text class=\"note\" x=\"{x:.1}\" y=\"{y:.1}\">{all}</text>"));
}

fn colour(zone: u16) -> &'static str {
    COLOURS.get(usize::from(zone) % COLOURS.len()).copied().unwrap_or("#555555")
}

/// A text by others as the content of an element: five characters are written as entities, and what
/// XML 1.0 has no place for as a question mark.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for it in text.chars() {
        match it {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&apos;"),
            it if it.is_control() || matches!(it, '\u{fffe}' | '\u{ffff}') => escaped.push('?'),
            it => escaped.push(it),
        }
    }
    escaped
}
