// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Eip712} from "./Eip712.sol";
import {Caps, Epoch, ICapacity, IGridToken} from "./Interfaces.sol";
import {EpochTree, VerdictPath} from "./EpochTree.sol";

/// @title Farms, nodes, their keys, claimed capacities and stakes.
/// @notice Numbers of farms and nodes count from 1. A claim may go down at once; it goes up only as
/// far as a final epoch shows it proven. Stake leaves after 14 days, during which it can be slashed.
contract Registry is Eip712 {
    uint256 public constant UNSTAKE_DELAY = 14 days;
    /// @notice Maintenance is announced this long ahead ...
    uint256 public constant NOTICE = 1 hours;
    /// @notice ... and takes at most this much of each 30 days, each epoch that it touches counted whole:
    /// no credit is given for such an epoch.
    uint256 public constant MAINTENANCE_PER_MONTH = 8 hours;
    /// @notice The next is announced so long after the last, when nobody can ask any more whether an epoch
    /// was in it: the chain keeps epochs for a day.
    uint256 public constant MAINTENANCE_PAUSE = 2 days;
    /// @notice A node that was not proven for this long can be parked by anyone.
    uint256 public constant SILENCE = 7 days;
    /// @notice Stake weighs by its age, up to this.
    uint256 public constant AGE_MAX = 365 days;
    /// @notice Weights are summed up by cohorts: nodes whose stake's age began in the same 30 days.
    uint256 public constant COHORT_SECONDS = 30 days;

    /// @notice Stake: for each node, core, GiB of memory, and TiB of disks (each begun one counts).
    uint256 public constant STAKE_NODE = 10e18;
    uint256 public constant STAKE_CORE = 1e18;
    uint256 public constant STAKE_MEM_GIB = 25e16;
    uint256 public constant STAKE_DISK_TIB = 5e18;

    uint8 private constant ACTIVE = 1;
    uint8 private constant PARKED = 2;
    uint8 private constant RETIRED = 3;

    bytes32 private constant NODE_KEY = keccak256("NodeKey(uint32 farm,bytes32 meshKey)");
    bytes32 private constant ROTATE_KEY = keccak256("RotateKey(uint32 node,bytes32 meshKey)");

    struct Farm {
        address owner;
        address payout;
        bytes32 meta;
    }

    struct Node {
        address signer;
        uint32 farm;
        uint8 state;
        uint40 since;
        Caps caps;
        uint112 stake;
        uint112 leaving;
        uint32 leavesAt;
    }

    struct Maintenance {
        uint64 from;
        uint64 to;
        uint64 month;
        uint64 used;
    }

    /// @notice A node's key for the mesh, and that key's signature over the chain key.
    struct MeshKey {
        bytes32 key;
        bytes32 signatureR;
        bytes32 signatureS;
    }

    IGridToken public immutable token;
    ICapacity public immutable capacity;
    /// @notice When the first cohort began.
    uint64 public immutable start;
    address private immutable slasherA;
    address private immutable slasherB;
    address private immutable slasherC;

    uint32 public farmCount;
    uint32 public nodeCount;
    mapping(uint32 => Farm) private farms;
    mapping(uint32 => Node) private nodes;
    mapping(address => uint32) public nodeOf;
    mapping(uint32 => Maintenance) public maintenance;
    /// @notice Of all nodes of a cohort: whole tokens that weigh (96 bits), and above these the sum of
    /// those times the second that their age began in. Less than 2^32 nodes of less than 2^112 units each
    /// fill neither.
    mapping(uint256 => uint256) public cohorts;

    event FarmAdded(uint32 indexed farm, address indexed owner, address payout, bytes32 meta);
    event FarmChanged(uint32 indexed farm, address indexed owner, address payout, bytes32 meta);
    event NodeAdded(
        uint32 indexed node, uint32 indexed farm, address signer, Caps caps, MeshKey mesh
    );
    event KeyRotated(uint32 indexed node, address signer, MeshKey mesh);
    event CapsChanged(uint32 indexed node, Caps caps);
    event Maintained(uint32 indexed node, uint64 from, uint64 to);
    event StakeAdded(uint32 indexed node, uint256 amount);
    event StakeLeaving(uint32 indexed node, uint256 amount, uint256 when);
    event StakeWithdrawn(uint32 indexed node, uint256 amount, address to);
    event Slashed(uint32 indexed node, uint256 amount, address beneficiary, uint256 share);
    event StateChanged(uint32 indexed node, uint8 state);

    error NotFarmOwner(uint32 farm);
    error NoPayout();
    error KeyInUse(address signer, uint32 node);
    error NotSignedByKey(address signer);
    error StakeTooSmall(uint256 has, uint256 needs);
    error NotActive(uint32 node);
    error ClaimsMore();
    error NotProven();
    error BadPeriod();
    error MaintenanceUsedUp(uint256 left);
    error NotLeaving(uint32 node);
    error TooEarly(uint256 when);
    error NotSilent(uint256 provenUntil);
    error NotSlasher();
    error AmountTooLarge();
    error TransferFailed();

    /// @param slashers Capacity, Disputes and Reservations.
    constructor(IGridToken token_, address[3] memory slashers) Eip712("Hypha Registry") {
        token = token_;
        capacity = ICapacity(slashers[0]);
        (slasherA, slasherB, slasherC) = (slashers[0], slashers[1], slashers[2]);
        start = uint64(block.timestamp);
    }

    modifier onlyOwnerOf(uint32 node) {
        uint32 farm = nodes[node].farm;
        require(farm != 0 && farms[farm].owner == msg.sender, NotFarmOwner(farm));
        _;
    }

    /// @notice Makes a farm of the caller.
    /// @param payout Where its rewards and income go. @param meta A hash of its description.
    function addFarm(address payout, bytes32 meta) external returns (uint32 farm) {
        require(payout != address(0), NoPayout());
        farm = ++farmCount;
        farms[farm] = Farm(msg.sender, payout, meta);
        emit FarmAdded(farm, msg.sender, payout, meta);
    }

    /// @notice Changes owner, payout or description.
    function changeFarm(uint32 farm, address owner, address payout, bytes32 meta) external {
        require(farms[farm].owner == msg.sender, NotFarmOwner(farm));
        require(owner != address(0) && payout != address(0), NoPayout());
        farms[farm] = Farm(owner, payout, meta);
        emit FarmChanged(farm, owner, payout, meta);
    }

    /// @notice Adds a node to a farm of the caller, with a stake out of the caller's tokens.
    /// @param signature The node's chain key over NodeKey(farm, mesh.key). The other half, the mesh
    /// key's signature over the chain key, is for readers: the EVM cannot check X25519 keys cheaply.
    function addNode(
        uint32 farm,
        Caps calldata caps,
        uint256 stake,
        MeshKey calldata mesh,
        bytes calldata signature
    ) external returns (uint32 node) {
        require(farms[farm].owner == msg.sender, NotFarmOwner(farm));
        requireStake(stake, caps);
        require(stake <= type(uint112).max, AmountTooLarge());
        address signer = recover(keccak256(abi.encode(NODE_KEY, farm, mesh.key)), signature);
        node = ++nodeCount;
        bind(signer, node);
        Node storage it = nodes[node];
        (it.signer, it.farm, it.state) = (signer, farm, ACTIVE);
        it.caps = caps;
        it.stake = uint112(stake);
        recount(it, 0);
        emit NodeAdded(node, farm, signer, caps, mesh);
        require(token.transferFrom(msg.sender, address(this), stake), TransferFailed());
    }

    /// @notice Binds another chain key. The old one stays bound for evidence against it.
    function rotateKey(uint32 node, MeshKey calldata mesh, bytes calldata signature)
        external
        onlyOwnerOf(node)
    {
        address signer = recover(keccak256(abi.encode(ROTATE_KEY, node, mesh.key)), signature);
        bind(signer, node);
        nodes[node].signer = signer;
        emit KeyRotated(node, signer, mesh);
    }

    /// @notice Claims less.
    function setCaps(uint32 node, Caps calldata caps) external onlyOwnerOf(node) {
        require(atMost(caps, nodes[node].caps), ClaimsMore());
        nodes[node].caps = caps;
        emit CapsChanged(node, caps);
    }

    /// @notice Claims more, as far as a final epoch shows it proven.
    function raiseCaps(uint32 node, Caps calldata caps, VerdictPath calldata proof)
        external
        onlyOwnerOf(node)
    {
        capacity.requireFinal(proof.posted);
        EpochTree.requireVerdict(proof);
        require(proof.verdict.node == node && atMost(caps, proof.verdict.caps), NotProven());
        requireStake(nodes[node].stake - nodes[node].leaving, caps);
        nodes[node].caps = caps;
        emit CapsChanged(node, caps);
    }

    /// @notice Announces maintenance: silence then costs nothing but the hours' rewards.
    function announceMaintenance(uint32 node, uint64 from, uint64 to) external onlyOwnerOf(node) {
        Maintenance storage it = maintenance[node];
        require(from >= block.timestamp + NOTICE && from < to && from <= 1 << 40, BadPeriod());
        // One period at a time: a later announcement must not erase one that was relied upon.
        uint256 again = it.to == 0 ? 0 : it.to + MAINTENANCE_PAUSE;
        require(block.timestamp >= again, TooEarly(again));
        uint64 month = from / 30 days;
        uint64 used = it.month == month ? it.used : 0;
        uint64 left = uint64(MAINTENANCE_PER_MONTH) - used;
        // The first epoch has ended an hour before `from` at the latest: nobody is here sooner.
        uint256 first = capacity.epochEnd(0);
        uint256 epochs = (to - first + 1 hours - 1) / 1 hours - (from - first) / 1 hours;
        require(epochs * 1 hours <= left, MaintenanceUsedUp(left));
        maintenance[node] = Maintenance(from, to, month, used + uint64(epochs * 1 hours));
        emit Maintained(node, from, to);
    }

    /// @notice Adds to a node's stake; anyone may. What is added has no age.
    function addStake(uint32 node, uint256 amount) external {
        Node storage it = nodes[node];
        require(it.state == ACTIVE || it.state == PARKED, NotActive(node));
        uint256 sum = it.stake + amount;
        require(sum <= type(uint112).max, AmountTooLarge());
        uint256 had = weighing(it);
        it.stake = uint112(sum);
        recount(it, had);
        emit StakeAdded(node, amount);
        require(token.transferFrom(msg.sender, address(this), amount), TransferFailed());
    }

    /// @notice Begins to take stake out; what stays must cover the claims. Another call replaces the
    /// amount and starts the 14 days anew; what then stays after all has lost its age.
    function unstake(uint32 node, uint256 amount) external onlyOwnerOf(node) {
        Node storage it = nodes[node];
        require(amount <= it.stake, StakeTooSmall(it.stake, amount));
        if (it.state != RETIRED) requireStake(it.stake - amount, it.caps);
        uint256 had = weighing(it);
        it.leaving = uint112(amount);
        it.leavesAt = uint32(block.timestamp + UNSTAKE_DELAY);
        recount(it, had);
        emit StakeLeaving(node, amount, it.leavesAt);
    }

    /// @notice Ends a node for good; all its stake begins to leave.
    function retire(uint32 node) external onlyOwnerOf(node) {
        Node storage it = nodes[node];
        require(it.state != RETIRED, NotActive(node));
        uint256 had = weighing(it);
        it.state = RETIRED;
        it.leaving = it.stake;
        it.leavesAt = uint32(block.timestamp + UNSTAKE_DELAY);
        recount(it, had);
        emit StateChanged(node, RETIRED);
        emit StakeLeaving(node, it.stake, it.leavesAt);
    }

    /// @notice Pays out stake whose 14 days are over: what slashing has left of it.
    function withdrawStake(uint32 node) external onlyOwnerOf(node) {
        Node storage it = nodes[node];
        uint256 amount = it.leaving;
        require(amount > 0, NotLeaving(node));
        require(block.timestamp >= it.leavesAt, TooEarly(it.leavesAt));
        it.stake -= uint112(amount);
        (it.leaving, it.leavesAt) = (0, 0);
        address to = farms[it.farm].payout;
        emit StakeWithdrawn(node, amount, to);
        require(token.transfer(to, amount), TransferFailed());
    }

    /// @notice Parks a node that was not proven for a week, or of whose stake slashing has left less than
    /// half of what its claims need; anyone may.
    function park(uint32 node) external {
        Node storage it = nodes[node];
        require(it.state == ACTIVE, NotActive(node));
        uint256 last = capacity.provenUntil(node);
        if (last < it.since) last = it.since;
        bool isBare = 2 * (uint256(it.stake) - it.leaving) < stakeFor(it.caps);
        require(isBare || block.timestamp > last + SILENCE, NotSilent(last));
        uint256 had = weighing(it);
        it.state = PARKED;
        recount(it, had);
        emit StateChanged(node, PARKED);
    }

    /// @notice Takes a parked node back into service.
    function unpark(uint32 node) external onlyOwnerOf(node) {
        Node storage it = nodes[node];
        require(it.state == PARKED, NotActive(node));
        requireStake(it.stake - it.leaving, it.caps);
        it.state = ACTIVE;
        // Its age begins anew, and with it a week: or anyone could park it again at once.
        recount(it, 0);
        emit StateChanged(node, ACTIVE);
    }

    /// @notice Takes stake of a node, also such as is leaving: a share goes to the beneficiary, the
    /// rest is burned, rounded up.
    /// @return taken What was there to take, at most `amount`.
    function slash(uint32 node, uint256 amount, address beneficiary, uint256 shareBps)
        external
        returns (uint256 taken)
    {
        require(
            msg.sender == slasherA || msg.sender == slasherB || msg.sender == slasherC, NotSlasher()
        );
        Node storage it = nodes[node];
        uint256 has = it.stake;
        taken = amount < has ? amount : has;
        uint256 left = has - taken;
        uint256 had = weighing(it);
        uint256 leaving = it.leaving;
        (it.stake, it.leaving) = (uint112(left), uint112(leaving < left ? leaving : left));
        recount(it, had);
        uint256 share = taken * shareBps / 10_000;
        emit Slashed(node, taken, beneficiary, share);
        if (share > 0) require(token.transfer(beneficiary, share), TransferFailed());
        if (taken > share) token.burn(taken - share);
    }

    function farmOf(uint32 farm) external view returns (Farm memory) {
        return farms[farm];
    }

    function nodeAt(uint32 node) external view returns (Node memory) {
        return nodes[node];
    }

    function ownerOf(uint32 farm) external view returns (address) {
        return farms[farm].owner;
    }

    function payoutOf(uint32 farm) external view returns (address) {
        return farms[farm].payout;
    }

    function identity(uint32 node)
        external
        view
        returns (address signer, uint32 farm, uint8 state)
    {
        Node storage it = nodes[node];
        return (it.signer, it.farm, it.state);
    }

    function room(uint32 node) external view returns (uint8 state, Caps memory caps) {
        return (nodes[node].state, nodes[node].caps);
    }

    function stakeOf(uint32 node) external view returns (uint256) {
        return nodes[node].stake;
    }

    /// @notice What a node weighs in votes: whole tokens of stake that is not leaving, times the seconds
    /// since its age began, a year at most; 0 if that was later or it is not active. **Nothing that is done
    /// after an instant makes a node weigh more at that instant.**
    function weightOf(uint32 node, uint256 instant) external view returns (uint256) {
        Node storage it = nodes[node];
        if (it.since > instant) return 0;
        uint256 age = instant - it.since;
        return weighing(it) * (age < AGE_MAX ? age : AGE_MAX);
    }

    /// @notice What all nodes weigh at an instant. Too much by at most a 48th of what the one cohort
    /// weighs of which only some have reached the year; too little, if stake was added after the instant
    /// to nodes of the newest cohort.
    function totalWeight(uint256 instant) external view returns (uint256 sum) {
        if (instant < start) return 0;
        uint256 last = cohortOf(instant);
        for (uint256 number = 0; number <= last; number++) {
            uint256 cohort = cohorts[number];
            uint256 tokens = uint96(cohort);
            uint256 most = tokens * AGE_MAX;
            uint256 grown = tokens * instant;
            uint256 moment = cohort >> 96;
            grown = grown > moment ? grown - moment : 0;
            sum += grown < most ? grown : most;
        }
    }

    /// @notice Whether announced maintenance touches the time between two instants.
    function inMaintenance(uint32 node, uint256 from, uint256 to) external view returns (bool) {
        Maintenance storage it = maintenance[node];
        return from < it.to && it.from < to;
    }

    /// @notice The stake that such a claim needs.
    function stakeFor(Caps memory caps) public pure returns (uint256) {
        uint256 mem = (uint256(caps.memMiB) + 1023) / 1024;
        uint256 disk = (uint256(caps.ssdMiB) + caps.hddMiB + 1_048_575) / 1_048_576;
        return STAKE_NODE + caps.cores * STAKE_CORE + mem * STAKE_MEM_GIB + disk * STAKE_DISK_TIB;
    }

    function requireStake(uint256 stake, Caps memory caps) private pure {
        uint256 needs = stakeFor(caps);
        require(stake >= needs, StakeTooSmall(stake, needs));
    }

    /// Whole tokens of a node that weigh.
    function weighing(Node storage it) private view returns (uint256) {
        if (it.state != ACTIVE) return 0;
        // What leaves is a part of the stake.
        unchecked {
            return (it.stake - it.leaving) / 1e18;
        }
    }

    /// Keeps the sums true after a node's tokens that weigh have changed. What comes has no age: the node
    /// gets younger, so that tokens times age, a year at most, is what it was.
    function recount(Node storage it, uint256 had) private {
        uint256 has = weighing(it);
        if (has == had) return;
        uint256 since = it.since;
        if (has < had) {
            cohorts[cohortOf(since)] -= part(had - has, since);
            return;
        }
        if (had > 0) cohorts[cohortOf(since)] -= part(had, since);
        uint256 age = block.timestamp - since;
        since = block.timestamp - (age < AGE_MAX ? age : AGE_MAX) * had / has;
        it.since = uint40(since);
        cohorts[cohortOf(since)] += part(has, since);
    }

    function cohortOf(uint256 instant) private view returns (uint256) {
        return (instant - start) / COHORT_SECONDS;
    }

    /// What tokens of an age are in a cohort's word: less than 2^52 tokens and 40 bits of seconds.
    function part(uint256 tokens, uint256 since) private pure returns (uint256) {
        unchecked {
            return (tokens * since << 96) + tokens;
        }
    }

    function bind(address signer, uint32 node) private {
        require(nodeOf[signer] == 0, KeyInUse(signer, nodeOf[signer]));
        nodeOf[signer] = node;
    }

    function atMost(Caps memory a, Caps memory b) private pure returns (bool) {
        return a.cores <= b.cores && a.memMiB <= b.memMiB && a.ssdMiB <= b.ssdMiB
            && a.hddMiB <= b.hddMiB && a.mbps <= b.mbps;
    }
}
