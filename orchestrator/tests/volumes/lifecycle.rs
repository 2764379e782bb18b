//! From creation to the end: snapshots, growth, repair, recovery, removal.

use std::fs;

use crate::place::{Place, content, directories, eventually, stderr};

const MIB: usize = 1 << 20;

/// Makes a volume and fills its first bytes.
fn filled(place: &Place, create: &str, data: &[u8]) {
    place.done(create);
    let serving = place.serve("db", "");
    serving.client().keep(0, data);
    serving.stop();
}

#[test]
fn a_deleted_directory_is_made_again_by_repair() {
    let place = Place::new();
    let data = content(1, 4 * MIB);
    filled(&place, "volume create db --size 64MiB --code 2+1", &data);
    let shard = |n: usize| place.path(&format!("state/volumes/db/shard-{n}"));
    fs::remove_dir_all(shard(1)).unwrap();
    let (code, status) = place.status("db");
    assert_eq!((code, status["health"].as_str()), (Some(6), Some("degraded")));
    assert_eq!((&status["redundancy"], &status["redundancy_wanted"]), (&0.into(), &1.into()));
    assert!(status["shards_to_repair"].as_u64() > Some(0), "{status}");
    assert_eq!(status["nodes"][1]["state"], "down");
    assert!(!shard(1).exists(), "status makes nothing");
    let (code, report) = place.json("volume repair db --json");
    assert_eq!(code, Some(0));
    assert!(report["shards_rebuilt"].as_u64() > Some(0), "{report}");
    assert_eq!(report["shards_rebuilt"], report["shards_bad"]);
    let (code, status) = place.status("db");
    assert_eq!((code, &status["shards_to_repair"]), (Some(0), &0.into()), "{status}");
    // What was made again is what is read when another directory goes.
    fs::remove_dir_all(shard(0)).unwrap();
    let serving = place.serve("db", "");
    assert_eq!(serving.client().read(0, data.len()), data);
    serving.stop();
}

#[test]
fn damage_is_found_and_mended_by_a_scrub() {
    let place = Place::new();
    let data = content(2, 4 * MIB);
    filled(&place, "volume create db --size 64MiB --code 2+1", &data);
    let objects = place.path("state/volumes/db/shard-1/objects");
    // Zone 0's extents begin behind its 16 MiB of slots.
    let file = fs::File::options().write(true).open(&objects).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[0x55; 64 << 10], 8192 + (17 << 20)).unwrap();
    drop(file);
    let (code, report) = place.json("volume scrub db --json");
    assert_eq!(code, Some(0), "{report}");
    assert!(report["shards_bad"].as_u64() > Some(0), "{report}");
    let (_, again) = place.json("volume scrub db --json");
    assert_eq!(again["shards_bad"], 0, "{again}");
}

#[test]
fn a_volume_is_found_again_from_its_nodes_and_its_key() {
    let place = Place::new();
    let nodes = directories(&place.path("disks"), 3);
    let data = content(3, 4 * MIB);
    filled(&place, &format!("volume create db --size 64MiB --code 2+1 --nodes {nodes}"), &data);
    place.done("volume snapshot db before");
    fs::copy(place.path("state/volumes/db/key"), place.path("db.key")).unwrap();
    fs::remove_dir_all(place.path("state")).unwrap();
    fs::remove_dir_all(place.path("disks/disk2")).unwrap();
    let key = place.path("db.key");
    let recover = format!("volume recover db --key {} --nodes {nodes}", key.display());
    place.done(&recover);
    let serving = place.serve("db", "");
    assert_eq!(serving.client().read(0, data.len()), data);
    serving.stop();
    assert!(place.done("volume snapshot db").starts_with("before  64 MiB"));
    let again = place.hypha(&recover);
    assert_eq!(again.status.code(), Some(2), "{}", stderr(&again));
}

#[test]
fn a_removed_volume_leaves_no_key_and_no_object() {
    let place = Place::new();
    let nodes = directories(&place.path("disks"), 3);
    filled(
        &place,
        &format!("volume create db --size 64MiB --code 2+1 --nodes {nodes}"),
        &content(4, 4 * MIB),
    );
    fs::copy(place.path("state/volumes/db/key"), place.path("stolen.key")).unwrap();
    let refused = place.hypha("volume rm db");
    assert_eq!(refused.status.code(), Some(2), "nobody confirmed: {}", stderr(&refused));
    assert!(place.path("state/volumes/db/key").exists());
    place.done("volume rm db --yes");
    assert!(!place.path("state/volumes/db").exists());
    assert_eq!(place.hypha("volume status db").status.code(), Some(3));
    // Even who has the key finds nothing to read: the shards are gone, and their space is free.
    let key = place.path("stolen.key");
    let recover = format!("volume recover db --key {} --nodes {nodes}", key.display());
    let nothing = place.hypha(&recover);
    assert_ne!(nothing.status.code(), Some(0), "{}", stderr(&nothing));
    assert!(!place.path("state/volumes/db/key").exists());
}

#[test]
fn an_unreachable_node_keeps_a_volume_from_being_removed_unless_it_is_abandoned() {
    let place = Place::new();
    let nodes = directories(&place.path("disks"), 3);
    place.done(&format!("volume create db --size 64MiB --code 2+1 --nodes {nodes}"));
    fs::remove_dir_all(place.path("disks/disk1")).unwrap();
    let refused = place.hypha("volume rm db --yes");
    assert_eq!(refused.status.code(), Some(2));
    assert!(stderr(&refused).contains("disk1"), "{}", stderr(&refused));
    assert!(place.path("state/volumes/db/key").exists(), "nothing was changed");
    let (code, left) = place.json("volume rm db --yes --abandon --json");
    assert_eq!((code, left["nodes_left"].as_array().map(Vec::len)), (Some(0), Some(1)), "{left}");
}

#[test]
fn a_rollback_undoes_and_a_growth_shows_to_who_comes_next() {
    let place = Place::new();
    let (before, after) = (content(5, MIB), content(6, MIB));
    filled(&place, "volume create db --size 64MiB --code 2+1", &before);
    let serving = place.serve("db", "");
    place.done("volume snapshot db before");
    let mut client = serving.client();
    client.keep(0, &after);
    place.done("volume grow db 128MiB");
    assert_eq!((client.size_bytes, serving.client().size_bytes), (64 << 20, 128 << 20));
    drop(client);
    serving.stop();
    place.done("volume rollback db before");
    let serving = place.serve("db", "");
    assert_eq!(serving.client().read(0, MIB), before);
    serving.stop();
    place.done("volume snapshot db before --delete");
    assert_eq!(place.done("volume snapshot db"), "");
}

#[test]
fn the_numbers_of_a_served_volume_follow_what_happens_to_it() {
    let place = Place::new();
    place.done("volume create db --size 64MiB --code 2+1");
    let serving = place.serve("db", "");
    let mut client = serving.client();
    client.write(0, &content(7, MIB));
    let (_, status) = place.status("db");
    assert_eq!(status["unflushed_bytes"], MIB, "what a crash would lose: {status}");
    let metrics = place.done("volume status db --metrics");
    assert!(metrics.contains("hypha_volume_rpo_bytes{volume=\"db\"} 1048576"), "{metrics}");
    client.flush();
    let (_, status) = place.status("db");
    assert_eq!(status["unflushed_bytes"], 0, "{status}");
    assert_eq!(status["counters"]["flushes"], 1, "{status}");
    assert_eq!(status["counters"]["written_bytes"], MIB, "{status}");
    serving.stop();
    fs::remove_dir_all(place.path("state/volumes/db/shard-2")).unwrap();
    let metrics = place.hypha("volume status db --metrics");
    let text = String::from_utf8(metrics.stdout).unwrap();
    for line in [
        "hypha_volume_redundancy{volume=\"db\"} 0",
        "hypha_volume_redundancy_wanted{volume=\"db\"} 1",
        "hypha_volume_nodes{volume=\"db\",state=\"down\"} 1",
        "hypha_volume_shards{volume=\"db\",state=\"intact\"}",
        "hypha_volume_shards{volume=\"db\",state=\"missing\"}",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
    assert!(!text.contains("hypha_volume_repair_backlog_shards{volume=\"db\"} 0\n"), "{text}");
}

#[test]
fn a_scraper_of_a_served_volume_gets_gauges_and_latencies() {
    let place = Place::new();
    place.done("volume create db --size 64MiB --code 2+1");
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let serving = place.serve("db", &format!("--metrics 127.0.0.1:{port}"));
    serving.client().keep(0, &content(8, MIB));
    let mut text = String::new();
    eventually("an answer to the scraper", || {
        use std::io::{Read, Write};
        let Ok(mut stream) = std::net::TcpStream::connect(("127.0.0.1", port)) else {
            return false;
        };
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
        text.clear();
        stream.read_to_string(&mut text).unwrap();
        text.starts_with("HTTP/1.0 200")
    });
    for line in [
        "hypha_volume_request_seconds_count{request=\"flush\"} 1",
        "hypha_volume_request_seconds_count{request=\"write\"} 1",
        "hypha_volume_redundancy{volume=\"db\"} 1",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
    serving.stop();
}
