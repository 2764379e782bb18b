// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Eip712} from "./Eip712.sol";
import {EpochTree, VerdictPath} from "./EpochTree.sol";
import {Caps, ICapacity, IGridToken, IRegistry, IVerifier} from "./Interfaces.sol";
import {Merkle} from "./Merkle.sol";
import {HashChain} from "./Verifiers.sol";

/// @title Disputes about what a node signed.
/// @notice Short ones are settled in one transaction, at once: nobody who told the truth has to answer.
/// A long run is bisected, sixteen parts a round, until one segment is left that a verifier can judge.
/// Who does not move within an hour has lost.
contract Disputes is Eip712 {
    uint256 public constant BOND = 5e18;
    uint256 public constant MOVE_SECONDS = 1 hours;
    uint256 public constant PARTS = 16;
    /// @notice What of a slashed stake goes to who showed the fraud; the rest is burned. As little as will
    /// do: it is also what an owner saves who reports himself.
    uint256 public constant REPORTER_BPS = 1000;

    uint8 private constant DEFENDER = 1;
    uint8 private constant CHALLENGER = 2;
    uint8 private constant LAST = 3;
    uint8 private constant HASH_SEGMENT = 1;

    bytes32 private constant RUN_CLAIM = keccak256(
        "RunClaim(uint32 node,uint8 verifier,uint64 segments,bytes32 start,bytes32 end)"
    );
    bytes32 private constant CHECKPOINTS =
        keccak256("Checkpoints(uint32 node,uint64 pulse,uint16 thread,uint64 count,bytes32 root)");

    /// @notice A node's claim that a run of `segments` segments leads from start to end.
    struct RunClaim {
        uint32 node;
        uint8 verifier;
        uint64 segments;
        bytes32 start;
        bytes32 end;
    }

    /// @notice A node's checkpoints of a pulse: leaf `i` is the state after `1000 i` steps.
    struct Checkpoints {
        uint32 node;
        uint64 pulse;
        uint16 thread;
        uint64 count;
        bytes32 root;
    }

    /// @notice A dispute that goes on; the chain keeps only its hash.
    struct Dispute {
        uint64 id;
        uint32 node;
        uint8 verifier;
        uint8 turn;
        uint64 low;
        uint64 high;
        uint64 deadline;
        address challenger;
        bytes32 from;
        bytes32 to;
        bytes32 mids;
    }

    IGridToken public immutable token;
    IRegistry public immutable registry;
    ICapacity public immutable capacity;
    /// @notice 1 HashSegment, 2 MerkleLeaf, 3 DagLabel.
    address private immutable hashSegment;
    address private immutable merkleLeaf;
    address private immutable dagLabel;

    mapping(uint64 => bytes32) private open;
    uint64 private lastId;

    event Opened(uint64 indexed id, uint32 indexed node, Dispute dispute);
    event Bisected(uint64 indexed id, bytes32[] mids, Dispute dispute);
    event Picked(uint64 indexed id, uint256 part, Dispute dispute);
    event Resolved(uint64 indexed id, uint32 indexed node, bool challengerWon, uint256 slashed);
    event Fraud(uint32 indexed node, uint64 pulse, address reporter, uint256 slashed);
    event FalseSegment(uint32 indexed node, bytes32 from, address reporter, uint256 slashed);

    error NotSignedByNode(uint32 node);
    error NotTheNode(uint32 node);
    error NotTheChallenger(address challenger);
    error NoSegments();
    error NoSuchVerifier(uint8 verifier);
    error Unknown(uint64 id);
    error NotYourTurn(uint8 turn);
    error TooEarly(uint256 when);
    error TooLate(uint256 when);
    error WrongMids();
    error NotProven();
    error NoFraud();
    error NoSingleSegment();
    error JudgedAtOnce();
    error NotInRun();
    error TransferFailed();

    /// @param verifiers HashSegment, MerkleLeaf, DagLabel.
    constructor(
        IGridToken token_,
        IRegistry registry_,
        ICapacity capacity_,
        address[3] memory verifiers
    ) Eip712("Hypha Disputes") {
        token = token_;
        registry = registry_;
        capacity = capacity_;
        (hashSegment, merkleLeaf, dagLabel) = (verifiers[0], verifiers[1], verifiers[2]);
    }

    /// @notice Two neighbouring checkpoints that do not follow from each other: all stake is lost.
    /// @param states The state at checkpoint `index`, and the one that the node says comes next.
    function segmentFraud(
        Checkpoints calldata run,
        bytes calldata signature,
        uint64 index,
        bytes32[2] calldata states,
        bytes32[] calldata first,
        bytes32[] calldata second
    ) external {
        requireSigned(
            run.node,
            keccak256(
                abi.encode(CHECKPOINTS, run.node, run.pulse, run.thread, run.count, run.root)
            ),
            signature
        );
        requireCheckpoint(run, index, states[0], first);
        requireCheckpoint(run, index + 1, states[1], second);
        require(HashChain.run(states[0]) != states[1], NoFraud());
        uint256 taken =
            registry.slash(run.node, type(uint256).max, msg.sender, REPORTER_BPS);
        require(taken > 0, NoFraud());
        emit Fraud(run.node, run.pulse, msg.sender, taken);
    }

    /// @notice A run of one segment of a hash chain that does not lead where the node says: all stake is
    /// lost. Nodes sign such runs in every pulse, so a true one must cost them nothing, not even an answer.
    function falseSegment(RunClaim calldata claim, bytes calldata signature) external {
        require(isOneHashSegment(claim), NoSingleSegment());
        requireClaim(claim, signature);
        require(HashChain.run(claim.start) != claim.end, NoFraud());
        uint256 taken =
            registry.slash(claim.node, type(uint256).max, msg.sender, REPORTER_BPS);
        require(taken > 0, NoFraud());
        emit FalseSegment(claim.node, claim.start, msg.sender, taken);
    }

    /// @notice A verdict that cannot be true, whatever happened: its epoch is void.
    function malformedVerdict(VerdictPath calldata proof) external {
        EpochTree.requireVerdict(proof);
        uint256 epochEnd = capacity.epochEnd(proof.posted.epoch);
        (address signer,,) = registry.identity(proof.verdict.node);
        bool wrong = proof.verdict.answered > proof.verdict.pulses
            || proof.verdict.provenUntil > epochEnd || signer == address(0);
        require(wrong, NoFraud());
        capacity.voidEpoch(proof.posted, msg.sender);
    }

    /// @notice Opens a dispute over a run that the node signed, unless `falseSegment` can judge it.
    function openDispute(RunClaim calldata claim, bytes calldata signature)
        external
        returns (Dispute memory it)
    {
        require(claim.segments > 0, NoSegments());
        require(!isOneHashSegment(claim), JudgedAtOnce());
        verifierOf(claim.verifier);
        requireClaim(claim, signature);
        it.id = ++lastId;
        (it.node, it.verifier, it.challenger) = (claim.node, claim.verifier, msg.sender);
        (it.from, it.to, it.high) = (claim.start, claim.end, claim.segments);
        it.turn = claim.segments == 1 ? LAST : DEFENDER;
        save(it);
        emit Opened(it.id, it.node, it);
        require(token.transferFrom(msg.sender, address(this), BOND), TransferFailed());
    }

    /// @notice The node shows the states between the parts of the disputed run.
    /// @param mids One less than there are parts: sixteen, or one for each segment if fewer.
    function bisect(Dispute memory it, bytes32[] calldata mids) external {
        requireTurn(it, DEFENDER);
        require(mids.length == partsOf(it) - 1, WrongMids());
        requireNode(it.node);
        it.mids = keccak256(abi.encodePacked(mids));
        it.turn = CHALLENGER;
        save(it);
        emit Bisected(it.id, mids, it);
    }

    /// @notice The challenger picks the part that is wrong.
    function pick(Dispute memory it, bytes32[] calldata mids, uint256 part) external {
        requireTurn(it, CHALLENGER);
        require(msg.sender == it.challenger, NotTheChallenger(it.challenger));
        uint256 parts = partsOf(it);
        require(keccak256(abi.encodePacked(mids)) == it.mids && part < parts, WrongMids());
        if (part > 0) it.from = mids[part - 1];
        if (part + 1 < parts) it.to = mids[part];
        uint256 length = it.high - it.low;
        it.high = it.low + uint64(length * (part + 1) / parts);
        it.low = it.low + uint64(length * part / parts);
        it.turn = it.high - it.low == 1 ? LAST : DEFENDER;
        it.mids = 0;
        save(it);
        emit Picked(it.id, part, it);
    }

    /// @notice Shows that the last segment is right: the node wins, and gets the challenger's bond.
    function finish(Dispute memory it, bytes calldata proof) external {
        requireTurn(it, LAST);
        require(verifierOf(it.verifier).verify(it.from, it.to, proof), NotProven());
        delete open[it.id];
        emit Resolved(it.id, it.node, false, 0);
        (, uint32 farm,) = registry.identity(it.node);
        require(token.transfer(registry.payoutOf(farm), BOND), TransferFailed());
    }

    /// @notice Ends a dispute in which somebody did not move in time. In the last round it was the
    /// node that had something to show.
    function timeout(Dispute memory it) external {
        require(open[it.id] == keccak256(abi.encode(it)), Unknown(it.id));
        require(block.timestamp > it.deadline, TooEarly(it.deadline));
        delete open[it.id];
        (address to, uint256 taken) = (it.challenger, 0);
        if (it.turn == CHALLENGER) {
            (, uint32 farm,) = registry.identity(it.node);
            to = registry.payoutOf(farm);
        } else {
            taken = registry.slash(it.node, type(uint256).max, it.challenger, REPORTER_BPS);
        }
        emit Resolved(it.id, it.node, it.turn != CHALLENGER, taken);
        require(token.transfer(to, BOND), TransferFailed());
    }

    /// @notice Into how many parts a disputed run is cut in this round.
    function partsOf(Dispute memory it) public pure returns (uint256) {
        uint256 length = it.high - it.low;
        return length < PARTS ? length : PARTS;
    }

    function save(Dispute memory it) private {
        it.deadline = uint64(block.timestamp + MOVE_SECONDS);
        open[it.id] = keccak256(abi.encode(it));
    }

    function requireTurn(Dispute memory it, uint8 turn) private view {
        require(open[it.id] == keccak256(abi.encode(it)), Unknown(it.id));
        require(it.turn == turn, NotYourTurn(it.turn));
        require(block.timestamp <= it.deadline, TooLate(it.deadline));
    }

    function requireNode(uint32 node) private view {
        (address signer, uint32 farm,) = registry.identity(node);
        bool allowed = msg.sender == signer || msg.sender == registry.ownerOf(farm);
        require(allowed, NotTheNode(node));
    }

    function requireSigned(uint32 node, bytes32 structHash, bytes calldata signature)
        private
        view
    {
        address signer = recover(structHash, signature);
        require(node != 0 && registry.nodeOf(signer) == node, NotSignedByNode(node));
    }

    function isOneHashSegment(RunClaim calldata claim) private pure returns (bool) {
        return claim.verifier == HASH_SEGMENT && claim.segments == 1;
    }

    function requireClaim(RunClaim calldata it, bytes calldata signature) private view {
        bytes32 hash =
            keccak256(abi.encode(RUN_CLAIM, it.node, it.verifier, it.segments, it.start, it.end));
        requireSigned(it.node, hash, signature);
    }

    function requireCheckpoint(
        Checkpoints calldata run,
        uint64 index,
        bytes32 state,
        bytes32[] calldata path
    ) private pure {
        bytes32 leaf = keccak256(abi.encodePacked(uint8(0), index, state));
        bytes32 top = Merkle.keccakTop(leaf, index, run.count, path);
        require(Merkle.keccakRoot(run.count, top) == run.root, NotInRun());
    }

    function verifierOf(uint8 which) private view returns (IVerifier) {
        if (which == HASH_SEGMENT) return IVerifier(hashSegment);
        if (which == 2) return IVerifier(merkleLeaf);
        require(which == 3, NoSuchVerifier(which));
        return IVerifier(dagLabel);
    }
}
