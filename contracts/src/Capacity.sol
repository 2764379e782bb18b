// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Eip712} from "./Eip712.sol";
import {EpochTree, Verdict, VerdictPath} from "./EpochTree.sol";
import {Caps, Epoch, IBeacon, IGridToken, IRegistry} from "./Interfaces.sol";
import {ExtentPath, Merkle, Plot} from "./Merkle.sol";

/// @title Plots, epochs and challenges.
/// @notice An epoch is an hour. An aggregator with a bond posts two roots for it; for six hours anyone
/// may demand a leaf of them, or show in Disputes that they are wrong. Nothing per node is kept until
/// somebody needs it.
contract Capacity is Eip712 {
    uint256 public constant EPOCH_SECONDS = 3600;
    uint256 public constant RING = 24;
    uint256 public constant AGGREGATOR_BOND = 1000e18;
    uint256 public constant LEAVE_DELAY = 3 days;
    uint256 public constant DEMAND_BOND = 1e18;
    uint256 public constant CHALLENGE_BOND = 1e18;
    /// @notice How long an answer to a demand or to a challenge may take.
    uint256 public constant ANSWER_SECONDS = 1 hours;
    /// @notice A missed or wrong answer costs this share of the stake; a proven fraud costs all.
    uint256 public constant MISS_BPS = 500;
    /// @notice What of a slashed stake or bond goes to who showed why; the rest is burned. As little as
    /// will do: it is also what is saved by who reports himself.
    uint256 public constant REPORTER_BPS = 1000;

    /// @notice An appeal against an epoch, how many seats its jury has in the mean, and until when before
    /// the end of its vote it can be seated.
    uint256 public constant APPEAL_BOND = 100e18;
    uint256 public constant JURY = 256;
    uint256 public constant VOTE_SECONDS = 50 minutes;

    /// What a demand has as its tree if it is an appeal.
    uint8 private constant APPEAL = 2;

    bytes32 private constant PULSE_ANSWER =
        keccak256("PulseAnswer(uint32 node,uint64 pulse,bytes32 answer)");
    bytes32 private constant PULSE_VERDICT = keccak256(
        "PulseVerdict(uint32 node,uint64 pulse,uint16 threads,uint32 memMiB,uint64 diskMiB,uint16 fillerDraws)"
    );

    /// @notice What a node's disks hold, as it commits to it.
    struct PlotRecord {
        bytes32 root;
        uint64 bytesLen;
        uint64 committedAt;
    }

    struct Aggregator {
        uint128 bond;
        uint64 leavesAt;
    }

    /// @notice A challenge; the chain keeps only its hash.
    struct Challenge {
        uint64 id;
        uint32 node;
        uint64 deadline;
        address challenger;
        uint64 offset;
        uint64 bytesLen;
        bytes32 plotRoot;
    }

    /// @notice A demand for a leaf of a posted epoch; the chain keeps only its hash. An appeal has tree
    /// 2, and as index the beacon's round.
    struct Demand {
        uint64 id;
        uint32 epoch;
        uint8 tree;
        uint64 index;
        uint64 deadline;
        address demander;
    }

    /// @notice What a jury is drawn by, and what all nodes weigh that it is drawn of.
    struct Jury {
        bytes20 seed;
        uint96 weight;
    }

    /// @notice How a jury has voted, in seats.
    struct Votes {
        uint128 upheld;
        uint128 rejected;
    }

    /// @notice What a witness says of a node in a pulse, as it signs it.
    struct Found {
        uint16 threads;
        uint32 memMiB;
        uint64 diskMiB;
        uint16 fillerDraws;
    }

    /// @notice The answer to a challenge: the 1 KiB leaf in which the drawn byte lies.
    struct Answer {
        ExtentPath way;
        bytes leaf;
        bytes32[] path;
    }

    IGridToken public immutable token;
    IRegistry public immutable registry;
    IBeacon public immutable beacon;
    address public immutable disputes;
    /// @notice When epoch 0 began.
    uint64 public immutable start;
    /// @notice How long a posted epoch can be disputed.
    uint64 public immutable window;

    bytes32[24] private epochs;
    mapping(address => Aggregator) public aggregators;
    mapping(uint32 => PlotRecord) public plots;
    /// @notice The salt that a node's filler must be made with: drawn once, before its first plot.
    mapping(uint32 => bytes32) public plotSalt;
    mapping(uint32 => uint64) public provenUntil;
    mapping(uint64 => bytes32) private open;
    mapping(uint64 => Votes) public votes;
    /// @notice An appeal's jury; its weight is 0 until it is seated.
    mapping(uint64 => Jury) public jury;
    mapping(uint64 => mapping(uint32 => bool)) private voted;
    uint64 private lastId;

    event SaltDrawn(uint32 indexed node, bytes32 salt);
    event PlotCommitted(uint32 indexed node, bytes32 root, uint64 bytesLen);
    event AggregatorJoined(address indexed aggregator);
    event AggregatorLeaving(address indexed aggregator, uint256 when);
    event AggregatorLeft(address indexed aggregator, uint256 amount);
    event EpochPosted(uint32 indexed epoch, Epoch posted, bytes32 data);
    event EpochVoided(uint32 indexed epoch, address indexed aggregator, uint256 slashed);
    event Demanded(uint64 indexed id, Demand demand, Epoch posted);
    event DemandAnswered(uint64 indexed id, Epoch posted);
    event Seated(uint64 indexed id, bytes20 seed, uint96 weight);
    event Voted(uint64 indexed id, uint32 indexed node, bool isTrue, uint128 seats);
    event FalseWitness(uint32 indexed witness, uint32 node, uint64 pulse, uint256 slashed);
    event NodeProven(uint32 indexed node, uint64 until);
    event Challenged(uint64 indexed id, uint32 indexed node, Challenge challenge);
    event Answered(uint64 indexed id, uint32 indexed node);
    event Released(uint64 indexed id, uint32 indexed node);
    event Failed(uint64 indexed id, uint32 indexed node, uint256 slashed);
    event Equivocated(uint32 indexed node, uint64 pulse, uint256 slashed);
    event Duplicated(uint32 indexed node, uint64 id, uint256 slashed);

    error NotTheNode(uint32 node);
    error NoSalt(uint32 node);
    error NoPlot(uint32 node);
    error NotAggregator(address account);
    error AlreadyAggregator(address account);
    error TooEarly(uint256 when);
    error TooLate(uint256 when);
    error WrongEpoch(uint32 epoch);
    error EpochTaken(uint32 epoch);
    error UnknownEpoch(uint32 epoch);
    error NotFinal(uint32 epoch);
    error NotDisputes();
    error HasVoted(uint32 node);
    error NoSeat(uint32 node);
    error SameRound(uint64 round);
    error NotSeated(uint64 id);
    error Unknown(uint64 id);
    error WrongAnswer();
    error NotProvenLater(uint64 provenUntil);
    error NoContradiction();
    error TransferFailed();

    constructor(
        IGridToken token_,
        IRegistry registry_,
        IBeacon beacon_,
        address disputes_,
        uint64 window_
    ) Eip712("Hypha Capacity") {
        token = token_;
        registry = registry_;
        beacon = beacon_;
        disputes = disputes_;
        start = uint64(block.timestamp);
        // The ring keeps an epoch for a day: it must be disputable and usable within.
        require(window_ <= 12 hours, TooLate(window_));
        window = window_;
    }

    // --- plots ---------------------------------------------------------------------------------

    /// @notice Draws the salt of a node's filler, once: nothing can be plotted before it is known.
    function drawSalt(uint32 node) external returns (bytes32 salt) {
        requireNode(node);
        salt = plotSalt[node];
        if (salt == 0) {
            (, bytes32 seed) = beacon.current();
            salt = keccak256(abi.encode(block.chainid, address(registry), node, seed));
            plotSalt[node] = salt;
            emit SaltDrawn(node, salt);
        }
    }

    /// @notice Commits to what the node's disks hold. @param root Of the Merkle sum tree.
    function commitPlot(uint32 node, bytes32 root, uint64 bytesLen) external {
        requireNode(node);
        require(plotSalt[node] != 0, NoSalt(node));
        plots[node] = PlotRecord(root, bytesLen, uint64(block.timestamp));
        emit PlotCommitted(node, root, bytesLen);
    }

    // --- epochs --------------------------------------------------------------------------------

    /// @notice Becomes an aggregator, with a bond.
    function join() external {
        require(aggregators[msg.sender].bond == 0, AlreadyAggregator(msg.sender));
        aggregators[msg.sender] = Aggregator(uint128(AGGREGATOR_BOND), 0);
        emit AggregatorJoined(msg.sender);
        take(msg.sender, AGGREGATOR_BOND);
    }

    /// @notice Stops posting; the bond can be taken out three days later.
    function resign() external {
        Aggregator storage it = aggregators[msg.sender];
        require(it.bond > 0 && it.leavesAt == 0, NotAggregator(msg.sender));
        it.leavesAt = uint64(block.timestamp + LEAVE_DELAY);
        emit AggregatorLeaving(msg.sender, it.leavesAt);
    }

    function withdrawBond() external {
        Aggregator memory it = aggregators[msg.sender];
        require(it.bond > 0 && it.leavesAt > 0, NotAggregator(msg.sender));
        require(block.timestamp >= it.leavesAt, TooEarly(it.leavesAt));
        delete aggregators[msg.sender];
        emit AggregatorLeft(msg.sender, it.bond);
        give(msg.sender, it.bond);
    }

    /// @notice Posts an epoch that is over, the last of each ring's day at the latest.
    /// @param data A hash of all leaves, for those who fetch them. The leaves can be demanded.
    function postEpoch(uint32 epoch, bytes32 verdictRoot, bytes32 rewardRoot, bytes32 data)
        external
    {
        Aggregator memory poster = aggregators[msg.sender];
        require(poster.bond > 0 && poster.leavesAt == 0, NotAggregator(msg.sender));
        uint256 ended = epochEnd(epoch);
        require(block.timestamp >= ended, TooEarly(ended));
        // Until then no newer epoch can be in the slot.
        require(block.timestamp < ended + RING * EPOCH_SECONDS, WrongEpoch(epoch));
        bytes32 old = epochs[epoch % RING];
        require(!holds(old, epoch), EpochTaken(epoch));
        Epoch memory posted =
            Epoch(epoch, uint64(block.timestamp), 0, msg.sender, verdictRoot, rewardRoot);
        epochs[epoch % RING] = mark(posted, 0);
        emit EpochPosted(epoch, posted, data);
    }

    /// @notice Demands a leaf of an epoch that can still be disputed.
    /// @param tree 0 verdicts, 1 rewards. @param index From 0; a leaf beyond the tree is answered by
    /// showing how many leaves there are.
    function demand(Epoch memory posted, uint8 tree, uint64 index) external returns (uint64 id) {
        require(tree < APPEAL, WrongAnswer());
        id = openDemand(posted, tree, index);
        take(msg.sender, DEMAND_BOND);
    }

    /// @notice Answers a demand with the leaf's bytes; anyone may, and gets the demander's bond.
    /// @param count Leaves of the tree; if the demanded one is not among them, `index` is the last.
    function answerDemand(
        Demand calldata it,
        Epoch memory posted,
        uint64 count,
        bytes calldata leaf,
        bytes32[] calldata path
    ) external {
        requireDemand(it, posted);
        require(it.tree < APPEAL, WrongAnswer());
        uint64 index = it.index < count ? it.index : count - 1;
        bytes32 hash = keccak256(abi.encodePacked(uint8(0), leaf));
        bytes32 root = Merkle.keccakRoot(count, Merkle.keccakTop(hash, index, count, path));
        require(root == (it.tree == 0 ? posted.verdictRoot : posted.rewardRoot), WrongAnswer());
        closeDemand(it, posted);
        give(msg.sender, DEMAND_BOND);
    }

    /// @notice Voids an epoch whose data is withheld: a demand was not answered in time.
    function voidWithheld(Demand calldata it, Epoch memory posted) external {
        requireDemand(it, posted);
        require(it.tree < APPEAL, WrongAnswer());
        require(block.timestamp > it.deadline, TooEarly(it.deadline));
        delete open[it.id];
        voidPosted(posted, it.demander);
        give(it.demander, DEMAND_BOND);
    }

    /// @notice Appeals against an epoch whose leaves don't follow from what witnesses signed. Nodes vote
    /// within the hour, with the seats that the next seed draws for each by its weight.
    function appeal(Epoch memory posted) external returns (uint64 id) {
        (uint64 round,) = beacon.current();
        id = openDemand(posted, APPEAL, round);
        take(msg.sender, APPEAL_BOND);
    }

    /// @notice Draws an appeal's jury, by a seed that nobody knew when it was made; anyone may, and the
    /// aggregator should at once: who appeals could wait for a seed that draws his own nodes.
    function seat(Demand calldata it, uint64 postedAt, address aggregator) external {
        requireAppeal(it, postedAt, aggregator);
        if (jury[it.id].weight != 0) return;
        (uint64 round, bytes32 seed) = beacon.current();
        require(round > it.index, SameRound(round));
        uint256 last = it.deadline - VOTE_SECONDS;
        require(block.timestamp <= last, TooLate(last));
        uint256 total = registry.totalWeight(epochEnd(it.epoch));
        // Of other weight than all that nodes have, seats are more or fewer, in the same proportions.
        if (total == 0) total = 1;
        if (total > type(uint96).max) total = type(uint96).max;
        Jury memory drawn = Jury(bytes20(seed), uint96(total));
        jury[it.id] = drawn;
        emit Seated(it.id, drawn.seed, drawn.weight);
    }

    /// @notice A node votes under its key, with all its seats.
    /// @param isTrue Whether the epoch is what the node makes of the same statements.
    function vote(
        Demand calldata it,
        uint64 postedAt,
        address aggregator,
        uint32 node,
        bool isTrue
    ) external {
        requireAppeal(it, postedAt, aggregator);
        require(block.timestamp <= it.deadline, TooLate(it.deadline));
        (address signer,,) = registry.identity(node);
        require(signer == msg.sender, NotTheNode(node));
        uint128 seats = uint128(seatsOf(it, node));
        require(seats > 0, NoSeat(node));
        require(!voted[it.id][node], HasVoted(node));
        voted[it.id][node] = true;
        if (isTrue) votes[it.id].upheld += seats;
        else votes[it.id].rejected += seats;
        emit Voted(it.id, node, isTrue, seats);
    }

    /// @notice Ends an appeal: the epoch is void if more seats were against it than for it; otherwise
    /// the bond is the aggregator's.
    function decide(Demand calldata it, Epoch memory posted) external {
        requireDemand(it, posted);
        require(it.tree == APPEAL, WrongAnswer());
        require(block.timestamp > it.deadline, TooEarly(it.deadline));
        Votes memory tally = votes[it.id];
        if (tally.rejected > tally.upheld) {
            delete open[it.id];
            voidPosted(posted, it.demander);
            give(it.demander, APPEAL_BOND);
        } else {
            closeDemand(it, posted);
            give(posted.aggregator, APPEAL_BOND);
        }
    }

    /// @notice The seats of a node in an appeal's jury: its share of all weight at the epoch's end, of
    /// `JURY` seats, of which a broken one is drawn whole or not at all. In the mean it makes no
    /// difference among how many nodes stake is divided.
    function seatsOf(Demand calldata it, uint32 node) public view returns (uint256) {
        Jury memory drawn = jury[it.id];
        require(drawn.weight != 0, NotSeated(it.id));
        uint256 share = JURY * registry.weightOf(node, epochEnd(it.epoch));
        uint256 draw = uint256(keccak256(abi.encodePacked("hypha juror", drawn.seed, it.id, node)));
        uint256 broken = draw % drawn.weight < share % drawn.weight ? 1 : 0;
        return share / drawn.weight + broken;
    }

    /// @notice Gives a demander's bond back after the epoch was voided by another demand.
    function reclaimDemand(Demand calldata it, uint64 postedAt, address aggregator) external {
        bytes32 hash = keccak256(abi.encode("demand", it, postedAt, aggregator));
        require(open[it.id] == hash, Unknown(it.id));
        require(!holds(epochs[it.epoch % RING], it.epoch), EpochTaken(it.epoch));
        delete open[it.id];
        give(it.demander, it.tree == APPEAL ? APPEAL_BOND : DEMAND_BOND);
    }

    /// @notice Voids an epoch that was shown to be wrong.
    function voidEpoch(Epoch memory posted, address beneficiary) external {
        require(msg.sender == disputes, NotDisputes());
        requireStands(posted);
        voidPosted(posted, beneficiary);
    }

    /// @notice Keeps on the chain until when a node is proven; anyone may.
    function prove(VerdictPath calldata proof) external {
        requireFinal(proof.posted);
        EpochTree.requireVerdict(proof);
        Verdict calldata it = proof.verdict;
        uint256 ended = epochEnd(proof.posted.epoch);
        // Nobody is proven ahead of time, whatever a root says.
        uint64 until = it.provenUntil < ended ? it.provenUntil : uint64(ended);
        require(until > provenUntil[it.node], NotProvenLater(provenUntil[it.node]));
        provenUntil[it.node] = until;
        emit NodeProven(it.node, until);
    }

    /// @notice When an epoch is over, in seconds.
    function epochEnd(uint32 epoch) public view returns (uint256) {
        return start + (uint256(epoch) + 1) * EPOCH_SECONDS;
    }

    /// @notice Reverts unless this epoch stands and can no longer be disputed.
    function requireFinal(Epoch memory posted) public view {
        requireStands(posted);
        require(
            block.timestamp >= posted.postedAt + window && posted.openDemands == 0,
            NotFinal(posted.epoch)
        );
    }

    // --- challenges ----------------------------------------------------------------------------

    /// @notice Challenges a node to show one byte of its plot, drawn by the beacon now.
    function challenge(uint32 node) external returns (Challenge memory it) {
        PlotRecord memory plot = plots[node];
        require(plot.bytesLen > 0, NoPlot(node));
        (, bytes32 seed) = beacon.current();
        it.id = ++lastId;
        it.node = node;
        it.deadline = uint64(block.timestamp + ANSWER_SECONDS);
        it.challenger = msg.sender;
        it.offset = uint64(uint256(keccak256(abi.encode(seed, it.id, node))) % plot.bytesLen);
        it.bytesLen = plot.bytesLen;
        it.plotRoot = plot.root;
        open[it.id] = keccak256(abi.encode("challenge", it));
        emit Challenged(it.id, node, it);
        take(msg.sender, CHALLENGE_BOND);
    }

    /// @notice Answers a challenge; the challenger's bond goes to the node's farm.
    function answer(Challenge calldata it, Answer calldata shown) external {
        uint64 from = requireDrawn(it, shown.way);
        uint64 len = shown.way.extent.bytesLen;
        require(
            Merkle.auditRoot(len, (it.offset - from) / 1024, shown.leaf, shown.path)
                == shown.way.extent.root,
            WrongAnswer()
        );
        delete open[it.id];
        emit Answered(it.id, it.node);
        (, uint32 farm,) = registry.identity(it.node);
        give(registry.payoutOf(farm), CHALLENGE_BOND);
    }

    /// @notice The node shows that a challenged byte lay in a user's extent, after it has committed to
    /// another plot: what users delete, nobody can show. The challenger has its bond back.
    function release(Challenge calldata it, ExtentPath calldata way) external {
        requireNode(it.node);
        requireDrawn(it, way);
        require(way.extent.kind == 2 && plots[it.node].root != it.plotRoot, WrongAnswer());
        delete open[it.id];
        emit Released(it.id, it.node);
        give(it.challenger, CHALLENGE_BOND);
    }

    /// @notice Ends a challenge that was not answered in time: the node loses stake, a tenth of it to
    /// the challenger.
    function expire(Challenge calldata it) external {
        requireChallenge(it);
        require(block.timestamp > it.deadline, TooEarly(it.deadline));
        delete open[it.id];
        uint256 amount = registry.stakeOf(it.node) * MISS_BPS / 10_000;
        uint256 taken = registry.slash(it.node, amount, it.challenger, REPORTER_BPS);
        emit Failed(it.id, it.node, taken);
        give(it.challenger, CHALLENGE_BOND);
    }

    /// @notice Two answers to one pulse under keys of one node: all its stake is lost.
    function equivocation(
        uint32 node,
        uint64 pulse,
        bytes32[2] calldata answers,
        bytes calldata first,
        bytes calldata second
    ) external {
        require(answers[0] != answers[1], NoContradiction());
        address a = recover(keccak256(abi.encode(PULSE_ANSWER, node, pulse, answers[0])), first);
        address b = recover(keccak256(abi.encode(PULSE_ANSWER, node, pulse, answers[1])), second);
        require(registry.nodeOf(a) == node && registry.nodeOf(b) == node, NotTheNode(node));
        uint256 taken =
            registry.slash(node, type(uint256).max, msg.sender, REPORTER_BPS);
        require(taken > 0, NoContradiction());
        emit Equivocated(node, pulse, taken);
    }

    /// @notice Two verdicts of one witness on one node and pulse: all the witness's stake is lost.
    function falseWitness(
        uint32 witness,
        uint32 node,
        uint64 pulse,
        Found[2] calldata found,
        bytes calldata first,
        bytes calldata second
    ) external {
        bytes32 one = verdictHash(node, pulse, found[0]);
        bytes32 other = verdictHash(node, pulse, found[1]);
        require(one != other, NoContradiction());
        (address a, address b) = (recover(one, first), recover(other, second));
        require(registry.nodeOf(a) == witness && registry.nodeOf(b) == witness, NotTheNode(witness));
        uint256 taken =
            registry.slash(witness, type(uint256).max, msg.sender, REPORTER_BPS);
        require(taken > 0, NoContradiction());
        emit FalseWitness(witness, node, pulse, taken);
    }

    /// @notice One extent at two places of a node's current plot: it is kept once and counted twice.
    function duplicate(uint32 node, ExtentPath calldata first, ExtentPath calldata second)
        external
    {
        (bytes32 rootA, uint64 startA,) = Plot.climb(first);
        (bytes32 rootB, uint64 startB,) = Plot.climb(second);
        require(rootA == plots[node].root && rootB == rootA, WrongAnswer());
        bool filler = first.extent.kind == 1;
        bool same = first.extent.kind == second.extent.kind
            && (filler ? first.extent.id == second.extent.id : first.extent.root == second.extent.root);
        require(same && startA != startB && first.extent.bytesLen > 0, NoContradiction());
        uint256 taken = registry.slash(node, type(uint256).max, msg.sender, REPORTER_BPS);
        require(taken > 0, NoContradiction());
        emit Duplicated(node, first.extent.id, taken);
    }

    // --- inside --------------------------------------------------------------------------------

    function openDemand(Epoch memory posted, uint8 tree, uint64 index) private returns (uint64 id) {
        requireStands(posted);
        uint256 ends = posted.postedAt + window;
        require(block.timestamp < ends, TooLate(ends));
        epochs[posted.epoch % RING] = mark(posted, posted.openDemands + 1);
        id = ++lastId;
        uint64 deadline = uint64(block.timestamp + ANSWER_SECONDS);
        Demand memory it = Demand(id, posted.epoch, tree, index, deadline, msg.sender);
        open[id] = keccak256(abi.encode("demand", it, posted.postedAt, posted.aggregator));
        emit Demanded(id, it, posted);
    }

    function closeDemand(Demand calldata it, Epoch memory posted) private {
        delete open[it.id];
        epochs[posted.epoch % RING] = mark(posted, posted.openDemands - 1);
        emit DemandAnswered(it.id, posted);
    }

    function verdictHash(uint32 node, uint64 pulse, Found calldata it)
        private
        pure
        returns (bytes32)
    {
        return keccak256(
            abi.encode(
                PULSE_VERDICT, node, pulse, it.threads, it.memMiB, it.diskMiB, it.fillerDraws
            )
        );
    }

    /// What a slot of the ring holds: 192 bits of the record's hash without its open demands, 32 bits of
    /// how many those are, 32 bits of epoch. Whoever hands in a record need not know how many demands there
    /// are: strangers open and close them, and could so keep every answer from being in time.
    function mark(Epoch memory posted, uint32 openDemands) private pure returns (bytes32) {
        posted.openDemands = 0;
        uint256 hash = uint256(EpochTree.hashOf(posted)) >> 64 << 64;
        posted.openDemands = openDemands;
        return bytes32(hash | uint256(openDemands) << 32 | posted.epoch);
    }

    function holds(bytes32 slot, uint32 epoch) private pure returns (bool) {
        return slot != 0 && uint32(uint256(slot)) == epoch;
    }

    /// Reverts unless this epoch stands, and sets its open demands to what they are.
    function requireStands(Epoch memory posted) private view {
        bytes32 slot = epochs[posted.epoch % RING];
        uint32 openDemands = uint32(uint256(slot) >> 32);
        require(slot != 0 && slot == mark(posted, openDemands), UnknownEpoch(posted.epoch));
    }

    function requireDemand(Demand calldata it, Epoch memory posted) private view {
        bytes32 hash = keccak256(abi.encode("demand", it, posted.postedAt, posted.aggregator));
        require(open[it.id] == hash && it.epoch == posted.epoch, Unknown(it.id));
        requireStands(posted);
    }

    /// Not by the whole record of the epoch: demands that others open meanwhile would change it.
    function requireAppeal(Demand calldata it, uint64 postedAt, address aggregator) private view {
        bytes32 hash = keccak256(abi.encode("demand", it, postedAt, aggregator));
        require(open[it.id] == hash && it.tree == APPEAL, Unknown(it.id));
    }

    function requireChallenge(Challenge calldata it) private view {
        require(open[it.id] == keccak256(abi.encode("challenge", it)), Unknown(it.id));
    }

    /// Reverts unless a challenge is open and drew a byte of this extent; returns where that begins.
    function requireDrawn(Challenge calldata it, ExtentPath calldata way)
        private
        view
        returns (uint64 from)
    {
        requireChallenge(it);
        require(block.timestamp <= it.deadline, TooLate(it.deadline));
        (bytes32 root, uint64 begins, uint64 sum) = Plot.climb(way);
        require(root == it.plotRoot && sum == it.bytesLen, WrongAnswer());
        require(
            begins <= it.offset && it.offset - begins < way.extent.bytesLen, WrongAnswer()
        );
        return begins;
    }

    function voidPosted(Epoch memory posted, address beneficiary) private {
        delete epochs[posted.epoch % RING];
        uint256 bond = aggregators[posted.aggregator].bond;
        delete aggregators[posted.aggregator];
        emit EpochVoided(posted.epoch, posted.aggregator, bond);
        uint256 share = bond * REPORTER_BPS / 10_000;
        if (share > 0) give(beneficiary, share);
        if (bond > share) token.burn(bond - share);
    }

    function requireNode(uint32 node) private view {
        (address signer, uint32 farm,) = registry.identity(node);
        bool allowed = msg.sender == signer
            || (farm != 0 && msg.sender == registry.ownerOf(farm));
        require(allowed, NotTheNode(node));
    }

    function take(address from, uint256 amount) private {
        require(token.transferFrom(from, address(this), amount), TransferFailed());
    }

    function give(address to, uint256 amount) private {
        require(token.transfer(to, amount), TransferFailed());
    }
}
