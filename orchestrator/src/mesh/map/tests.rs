use mesh_node::orders::{Answer, AttachedStatus, NeighbourStatus, RouteStatus, Status};

use super::svg::{Layout, draw};
use super::*;

/// What `hypha mesh status --json` said on a node among others.
const RECORDED: &str = include_str!("recorded.json");
const PICTURE: &str = include_str!("../../../../docs/mesh-map.svg");

fn recorded() -> Status {
    match serde_json::from_str(RECORDED).unwrap() {
        Answer::Status(status) => *status,
        answer => panic!("{answer:?}"),
    }
}

/// A node with so many neighbours, and so many nodes behind each of them.
fn large(neighbours: u16, behind: u16) -> Status {
    let key = |number: u32| format!("{number:064x}");
    let mut status = recorded();
    (status.neighbours, status.routes) = (Vec::new(), Vec::new());
    for at in 0..neighbours {
        let own = key(u32::from(at));
        status.neighbours.push(NeighbourStatus {
            key: own.clone(),
            address: status.address,
            zone: at % 5,
            is_usable: true,
            round_trip_us: 1000,
            cost_us: 1000,
        });
        status.routes.extend((0..behind).map(|number| RouteStatus {
            prefix: String::new(),
            key: key(u32::from(at) << 16 | 1 << 31 | u32::from(number)),
            zone: Some(number % 7),
            cost_us: Some(2000),
            next: Some(own.clone()),
            next_best: None,
        }));
    }
    status
}

/// Whether tags are closed in the order in which they were opened.
fn is_balanced(xml: &str) -> bool {
    let mut open = Vec::new();
    for tag in xml.split('<').skip(1).filter_map(|it| it.split('>').next()) {
        match tag.strip_prefix('/') {
            Some(name) if open.pop() != Some(name) => return false,
            None if !tag.ends_with('/') => open.extend(tag.split(' ').next()),
            _ => {}
        }
    }
    open.is_empty()
}

#[test]
fn the_picture_in_the_documents_is_what_the_command_draws() {
    let drawn = draw(&Map::new(&recorded()));
    if std::env::var_os("HYPHA_BLESS").is_some() {
        let place = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/mesh-map.svg");
        std::fs::write(place, &drawn).unwrap();
        return;
    }
    assert_eq!(drawn, PICTURE, "look at it, then HYPHA_BLESS=1 writes it anew");
    assert!(is_balanced(&drawn));
}

#[test]
fn everybody_is_drawn_once_and_nobody_on_top_of_another() {
    for (neighbours, behind) in [(0, 0), (1, 0), (2, 1), (3, 11), (30, 9), (300, 0), (1, 299)] {
        let mut map = Map::new(&large(neighbours, behind));
        map.attached =
            (0..neighbours % 40).map(|it| Attached { name: None, key: it.to_string() }).collect();
        let layout = Layout::new(&map);
        let places: Vec<_> = layout
            .neighbours
            .iter()
            .flat_map(|(place, behind)| behind.iter().chain([place]))
            .chain(&layout.attached)
            .copied()
            .collect();
        let others = usize::from(neighbours) * (1 + usize::from(behind));
        assert_eq!(places.len(), others + map.attached.len());
        for (at, one) in places.iter().enumerate() {
            for other in &places[at + 1..] {
                let apart = (one.x - other.x).hypot(one.y - other.y);
                assert!(apart > 12.0, "{neighbours}, {behind}: {one:?} and {other:?}");
            }
        }
        assert!(layout.radius < 3000.0, "{neighbours}, {behind}: {}", layout.radius);
        let drawn = draw(&map);
        let titles = drawn.matches("<title>").count();
        assert_eq!(titles, places.len() + 2, "and the node, and the picture");
        assert!(is_balanced(&drawn));
        assert_eq!(map.text().lines().count(), places.len() + 1);
    }
}

#[test]
fn what_others_say_steers_neither_a_terminal_nor_a_browser() {
    let evil = "\u{1b}]0;<svg>\u{7}</title><script>alert(1)</script>&\"'";
    let mut status = large(2, 2);
    status.key = evil.to_owned();
    let (key, name) = (evil.to_owned(), Some(evil.to_owned()));
    status.attached = vec![AttachedStatus { key, address: status.address, name }];
    status.neighbours[0].key = evil.to_owned();
    status.routes[3].key = format!("{evil}2");
    status.routes[2].next = None;
    status.routes[2].key = format!("{evil}3");
    let map = Map::new(&status);
    let drawn = draw(&map);
    assert!(is_balanced(&drawn));
    for text in [&drawn, &map.text()] {
        assert!(!text.contains("<script") && !text.contains("\u{1b}") && !text.contains("\u{7}"));
    }
    assert!(drawn.contains("&lt;script&gt;"));
    let json = serde_json::to_string(&map).unwrap();
    assert!(!json.contains('\u{1b}'));
}

#[test]
fn of_two_links_to_one_neighbour_the_one_that_works_is_drawn() {
    let mut status = large(1, 3);
    let other = NeighbourStatus { is_usable: false, ..status.neighbours[0].clone() };
    for at in [0, 1] {
        status.neighbours.insert(at, other.clone());
        let map = Map::new(&status);
        assert_eq!(map.neighbours.len(), 1);
        assert!(map.neighbours[0].is_usable);
        assert_eq!(map.neighbours[0].behind.len(), 3);
        status.neighbours.remove(at);
    }
}

#[test]
fn who_cannot_be_reached_is_said_to_be_so() {
    let mut status = large(1, 2);
    let lost = status.routes[1].key.clone();
    (status.routes[1].next, status.routes[1].cost_us) = (None, None);
    let map = Map::new(&status);
    assert_eq!((map.neighbours[0].behind.len(), &map.unreachable), (1, &vec![lost]));
    assert!(map.text().ends_with("  unreachable\n"), "{}", map.text());
    assert!(draw(&map).contains("1 unreachable"));
}
