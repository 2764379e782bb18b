//! Every object of a spec with its fields. `docs/spec.md` explains them.

use super::form;
use super::shape::{Field, Object, Rule, Shape, WorkloadType};
use super::{MEMORY_BYTES_MAX, MEMORY_BYTES_MIN, PAGE_BYTES, VOLUME_BYTES_MAX, VOLUME_BYTES_MIN};

/// The most workloads of one deployment.
const WORKLOADS_MAX: usize = 256;

const fn required(name: &'static str, shape: Shape, doc: &'static str) -> Field {
    Field { name, rule: Rule::Required(shape), doc }
}

const fn optional(name: &'static str, shape: Shape, doc: &'static str) -> Field {
    Field { name, rule: Rule::Optional(shape), doc }
}

/// A field of the format that this version can't honour; `instead` says what it can.
const fn later(name: &'static str, instead: &'static str) -> Field {
    Field { name, rule: Rule::NotYet, doc: instead }
}

const fn any_number(max: u64) -> Shape {
    Shape::Integer { min: 0, max, why: "" }
}

const LABELS: Shape = Shape::Map { names: &form::LABEL, values: &form::LABEL, max: 64 };

/// The whole spec.
pub(crate) static DEPLOYMENT: Object = Object {
    what: "a deployment",
    fields: &[
        optional("$schema", Shape::Text(&form::TEXT), "The schema, for editors."),
        optional(
            "api",
            Shape::Choice { what: "api version", names: &["v1"], later: &[] },
            "The version of this format.",
        ),
        required("name", Shape::Text(&form::DEPLOYMENT_NAME), "The deployment's identity."),
        optional("version", any_number(u32::MAX as u64), "Its generation; not used by hypha run."),
        optional("labels", LABELS, "Labels for people."),
        optional("description", Shape::Text(&form::TEXT), "A description for people."),
        optional("metadata", Shape::Text(&form::TEXT), "Opaque to Hypha."),
        required(
            "workloads",
            Shape::List { item: &Shape::Workload, min: 1, max: WORKLOADS_MAX, why: "" },
            "The networks, volumes and machines.",
        ),
        later("twin_id", "the import of ThreeFold deployments will come as hypha import"),
        later("contract_id", "the import of ThreeFold deployments will come as hypha import"),
        later("expiration", "the import of ThreeFold deployments will come as hypha import"),
        later(
            "signature_requirement",
            "the import of ThreeFold deployments will come as hypha import",
        ),
    ],
};

/// The fields that all workloads have. `data` is checked by the type.
pub(crate) static WORKLOAD: Object = Object {
    what: "a workload",
    fields: &[
        required("name", Shape::Text(&form::WORKLOAD_NAME), "Unique in the deployment."),
        required("type", Shape::Any, "What the workload is."),
        optional("data", Shape::Any, "What the type needs."),
        optional("version", any_number(u32::MAX as u64), "Its generation; not used by hypha run."),
        optional("labels", LABELS, "Labels that firewall rules may name."),
        optional("description", Shape::Text(&form::TEXT), "A description for people."),
        optional("metadata", Shape::Text(&form::TEXT), "Opaque to Hypha."),
        optional("result", Shape::Any, "A result that ThreeFold wrote; ignored."),
        later("depends_on", "all workloads are started at once"),
    ],
};

/// The types that run.
pub(crate) static WORKLOAD_TYPES: [WorkloadType; 3] = [
    WorkloadType { names: &["network"], data: &NETWORK },
    WorkloadType { names: &["volume", "zmount", "disk"], data: &VOLUME },
    WorkloadType { names: &["zmachine", "vm"], data: &MACHINE },
];

/// The types that do not run yet.
pub(crate) const TYPES_LATER: [&str; 9] = [
    "zmachine-light",
    "network-light",
    "ip",
    "ipv4",
    "gateway-name-proxy",
    "gateway-fqdn-proxy",
    "zdb",
    "qsfs",
    "zlogs",
];

/// What runs, for messages.
pub(crate) const TYPES_HINT: &str =
    "supported are network, volume (or zmount, disk) and zmachine (or vm)";

static NETWORK: Object = Object {
    what: "a network",
    fields: &[
        optional("subnet", Shape::Text(&form::SUBNET), "IPv4 addresses for the members."),
        optional("mesh", Shape::Object(&MESH), "Peers outside this deployment."),
        later("ip_range", "use \"subnet\""),
        later("wireguard_private_key", "keys are made and kept by hypha"),
        later("wireguard_listen_port", "use \"mesh_port\" of the interface"),
        later("peers", "use \"mesh\": {\"peers\": ...}"),
        later("mycelium", "every machine has an IPv6 address on the mesh"),
    ],
};

static MESH: Object = Object {
    what: "a network's mesh",
    fields: &[
        optional("listen", Shape::Text(&form::IP), "The host's address for the UDP sockets."),
        optional(
            "peers",
            Shape::List { item: &Shape::Object(&PEER), min: 0, max: 256, why: "" },
            "Mesh members outside this deployment.",
        ),
        optional("attach", Shape::Bool, "Attach members to this host's mesh node; true if absent."),
        optional("exit", Shape::Text(&form::KEY), "Whom members reach the internet through."),
    ],
};

static PEER: Object = Object {
    what: "a peer",
    fields: &[
        required("key", Shape::Text(&form::KEY), "The peer's X25519 public key."),
        optional("endpoint", Shape::Text(&form::ENDPOINT), "Where it is; absent: it calls us."),
    ],
};

static VOLUME: Object = Object {
    what: "a volume",
    fields: &[
        required(
            "size",
            Shape::Size { min: VOLUME_BYTES_MIN, max: VOLUME_BYTES_MAX, multiple: PAGE_BYTES },
            "The volume's size.",
        ),
        optional("redundancy", Shape::Object(&REDUNDANCY), "Into how many shards it is spread."),
        optional(
            "nodes",
            Shape::List { item: &Shape::Text(&form::NODE), min: 1, max: 64, why: "" },
            "Directories and shard servers, one per shard; then spares.",
        ),
        optional(
            "policy",
            Shape::Choice { what: "policy", names: &["local", "quorum", "sealed"], later: &[] },
            "When a flush is answered.",
        ),
        later("encrypted", "every volume is encrypted"),
        later("class", "say with \"nodes\" where shards lie"),
        later("backup", ""),
    ],
};

static REDUNDANCY: Object = Object {
    what: "a redundancy",
    fields: &[
        required("data", Shape::Integer { min: 1, max: 32, why: "" }, "Shards with data."),
        required(
            "parity",
            Shape::Integer { min: 0, max: 32, why: "" },
            "Shards with parity: so many may be lost.",
        ),
    ],
};

static MACHINE: Object = Object {
    what: "a machine",
    fields: &[
        required("image", Shape::Object(&IMAGE), "What runs."),
        optional("compute_capacity", Shape::Object(&CAPACITY), "vCPUs and memory."),
        optional(
            "mounts",
            Shape::List { item: &Shape::Object(&MOUNT), min: 0, max: 4, why: "" },
            "Volumes, in the order of the guest's block devices.",
        ),
        optional("network", Shape::Object(&MACHINE_NETWORK), "The network card."),
        optional(
            "ports",
            Shape::List { item: &Shape::Object(&PORT), min: 0, max: 64, why: "" },
            "TCP ports of the guest that the host publishes.",
        ),
        optional(
            "args",
            Shape::List { item: &Shape::Text(&form::TEXT), min: 0, max: 256, why: "" },
            "The guest's arguments, without the program's name.",
        ),
        optional(
            "env",
            Shape::Map { names: &form::ENV_NAME, values: &form::TEXT, max: 256 },
            "The guest's environment.",
        ),
        optional("restart", Shape::Object(&RESTART), "What happens when the machine ends."),
        later("kernel", "a unikernel image is its own kernel"),
        later("flist", "use \"image\": {\"unikernel\": ...}"),
        later("size", "a unikernel has no root file system"),
        later("entrypoint", "a unikernel has one program; use \"args\""),
        later("workdir", ""),
        later("user", ""),
        later("secrets", ""),
        later("checks", "a machine counts as healthy while it runs"),
        later("limits", ""),
        later("update", ""),
        later("replicas", "list the machine several times under different names"),
        later("logs", "the log goes to standard output"),
        later("gpu", ""),
        later("corex", ""),
    ],
};

static IMAGE: Object = Object {
    what: "an image",
    fields: &[
        required("unikernel", Shape::Text(&form::IMAGE), "A shipped image's name, or a path."),
        later("sha256", ""),
        later("oci", "use \"unikernel\""),
        later("elf", "use \"unikernel\""),
        later("disk", "use \"unikernel\""),
        later("flist", "use \"unikernel\""),
    ],
};

static CAPACITY: Object = Object {
    what: "a compute capacity",
    fields: &[
        optional(
            "cpu",
            Shape::Integer { min: 1, max: 1, why: "a unikernel has one vCPU for now" },
            "How many vCPUs.",
        ),
        optional(
            "memory",
            Shape::Size { min: MEMORY_BYTES_MIN, max: MEMORY_BYTES_MAX, multiple: PAGE_BYTES },
            "The guest's memory.",
        ),
    ],
};

static MOUNT: Object = Object {
    what: "a mount",
    fields: &[
        required("name", Shape::Text(&form::WORKLOAD_NAME), "The volume."),
        required("mountpoint", Shape::Text(&form::MOUNTPOINT), "Where the guest shows it."),
        optional("read_only", Shape::Bool, "Whether the guest may not write."),
    ],
};

static MACHINE_NETWORK: Object = Object {
    what: "a machine's network",
    fields: &[
        optional(
            "interfaces",
            Shape::List {
                item: &Shape::Object(&INTERFACE),
                min: 0,
                max: 1,
                why: "a machine has one network card for now",
            },
            "The machine's network cards.",
        ),
        later("public_ip", "use \"ports\" with \"public\": true"),
        later("planetary", "every machine has an IPv6 address on the mesh"),
        later("mycelium", "every machine has an IPv6 address on the mesh"),
    ],
};

static INTERFACE: Object = Object {
    what: "an interface",
    fields: &[
        required("network", Shape::Text(&form::WORKLOAD_NAME), "The network."),
        optional("ip", Shape::Text(&form::IPV4), "Its address in the network's subnet."),
        optional("mesh_port", Shape::Port, "The host's UDP port of the card."),
        optional(
            "allow",
            Shape::List { item: &Shape::Object(&ALLOW), min: 0, max: 256, why: "" },
            "Who may open flows to this machine.",
        ),
        optional(
            "egress",
            Shape::List { item: &Shape::Object(&EGRESS), min: 0, max: 256, why: "" },
            "To whom this machine may open flows; absent: to anybody.",
        ),
        optional("limits", Shape::Object(&LIMITS), "How much of its traffic passes each way."),
        optional(
            "post_quantum",
            Shape::Choice { what: "policy", names: &["upgrade", "required"], later: &[] },
            "Whether peers without ML-KEM-768 are refused; absent: \"upgrade\".",
        ),
        optional(
            "certificates",
            Shape::List {
                item: &Shape::Text(&form::CERTIFICATE),
                min: 0,
                max: 5,
                why: "so many fit one message",
            },
            "Certificates of labels that this machine has, from `hypha mesh group give`.",
        ),
        later("mac", ""),
        later("rate", "use \"limits\""),
    ],
};

static ALLOW: Object = Object {
    what: "an allow rule",
    fields: &[
        required("from", Shape::Text(&form::FROM), "Who."),
        required(
            "protocol",
            Shape::Choice { what: "protocol", names: &["tcp", "udp", "icmp"], later: &[] },
            "The protocol.",
        ),
        optional("port", Shape::Port, "The destination port; absent for all."),
    ],
};

static EGRESS: Object = Object {
    what: "an egress rule",
    fields: &[
        required("to", Shape::Text(&form::FROM), "To whom."),
        required(
            "protocol",
            Shape::Choice { what: "protocol", names: &["tcp", "udp", "icmp"], later: &[] },
            "The protocol.",
        ),
        optional("port", Shape::Port, "The destination port; absent for all."),
    ],
};

static LIMITS: Object = Object {
    what: "limits",
    fields: &[
        optional(
            "packets_per_second",
            Shape::Integer { min: 1, max: 1 << 32, why: "" },
            "IP packets per second.",
        ),
        optional(
            "bytes_per_second",
            Shape::Size { min: 1 << 10, max: 1 << 40, multiple: 1 },
            "Their bytes per second.",
        ),
    ],
};

static PORT: Object = Object {
    what: "a published port",
    fields: &[
        required("listen", Shape::Port, "The host's port."),
        required("target", Shape::Port, "The guest's port."),
        optional(
            "protocol",
            Shape::Choice { what: "protocol", names: &["tcp"], later: &["udp"] },
            "The protocol.",
        ),
        optional("public", Shape::Bool, "Listen on all addresses of the host, not on loopback."),
    ],
};

static RESTART: Object = Object {
    what: "a restart rule",
    fields: &[
        required(
            "policy",
            Shape::Choice {
                what: "restart policy",
                names: &["always", "on-failure", "never"],
                later: &[],
            },
            "When the machine is started again.",
        ),
        optional("max_retries", any_number(u32::MAX as u64), "After how many it is given up."),
        optional("backoff_initial", Shape::Text(&form::DURATION), "The first pause."),
        optional("backoff_max", Shape::Text(&form::DURATION), "The longest pause."),
        optional("reset_after", Shape::Text(&form::DURATION), "A run so long counts as healthy."),
    ],
};
