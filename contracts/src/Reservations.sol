// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {VerdictPath, EpochTree} from "./EpochTree.sol";
import {Caps, ICapacity, IERC20, IGridToken, IRegistry} from "./Interfaces.sol";

/// @title Offers of capacity, and reservations that pay for it by the second.
/// @notice No loop bills anyone: what is owed is a formula of time that both sides compute.
///
/// A deposit is a balance and a bond (24 hours at the storage rate). Time runs at the full rate while
/// the balance lasts; then the machine is paused and its storage is kept at the storage rate while
/// the bond lasts; then all is over. Only time until the node was last proven is paid for. Of each
/// payment 10 % is burned, rounded up, and the rest is the farm's.
contract Reservations {
    uint256 public constant MIN_SECONDS = 1 hours;
    uint256 public constant BOND_SECONDS = 24 hours;
    /// @notice So long after its end a reservation waits for proofs; then the rest is given back.
    uint256 public constant PROOF_SECONDS = 48 hours;
    /// @notice An hour without service gives the user this many times its price, from the stake; as much
    /// again is burned, so that an owner who is his own user loses by it.
    uint256 public constant SLA_FACTOR = 2;
    /// @notice Credits take at most this share of a node's stake, what is burned included, ...
    uint256 public constant CREDIT_BPS = 1000;
    /// @notice ... in so long from the first of them on: else an owner could take all of his stake out
    /// this way at once, while evidence against his node is on its way.
    uint256 public constant CREDIT_PERIOD = 30 days;

    /// @notice A token that can be paid with. One that cannot be burned sends that part to a sink.
    struct Token {
        address token;
        bool burnable;
    }

    struct Offer {
        uint32 node;
        uint80 rate;
        uint80 storageRate;
        uint32 minSeconds;
        uint8 token;
        bool open;
        Caps caps;
    }

    struct Reservation {
        address user;
        uint32 offer;
        uint32 paidTo;
        /// 0 while it is open.
        uint32 end;
        uint96 balance;
        uint80 bond;
        /// Hours that begin before give no credit: it was not there, it was paused, or they gave one.
        uint32 creditFrom;
        /// Since when the machine is paused, if time was settled beyond that; 0 otherwise.
        uint32 pausedAt;
    }

    /// @notice What credits have taken of a node's stake since an instant.
    struct Credits {
        uint128 taken;
        uint64 since;
    }

    /// @notice An EIP-2612 permit for the deposit; a deadline of 0 is none.
    struct Permit {
        uint256 deadline;
        uint8 v;
        bytes32 r;
        bytes32 s;
    }

    /// What a payout that must not be in the way of others may use; an honest token takes a tenth of it.
    uint256 private constant PUSH_GAS = 300_000;
    address private constant SINK = 0x000000000000000000000000000000000000dEaD;

    IRegistry public immutable registry;
    ICapacity public immutable capacity;

    Token[] public tokens;
    uint32 public offerCount;
    uint64 public reservationCount;
    mapping(uint32 => Offer) private offers;
    mapping(uint64 => Reservation) private reservations;
    mapping(uint32 => Caps) private used;
    /// @notice What a farm can withdraw, by token.
    mapping(uint32 => mapping(uint8 => uint256)) public earned;
    mapping(uint32 => Credits) public credits;
    /// @notice What a token would not pay out to an account, to be collected.
    mapping(address => mapping(uint8 => uint256)) public unpaid;

    event Offered(uint32 indexed offer, uint32 indexed node, Offer terms);
    event OfferEnded(uint32 indexed offer);
    event Reserved(
        uint64 indexed id, uint32 indexed offer, address indexed user, bytes32 spec, uint256 deposit
    );
    event ToppedUp(uint64 indexed id, uint256 amount);
    event Settled(uint64 indexed id, uint256 toFarm, uint256 burned, uint256 paidTo);
    event Depleted(uint64 indexed id, uint256 end);
    event Closed(uint64 indexed id, uint256 end);
    event Refunded(uint64 indexed id, address indexed user, uint256 amount);
    event Credited(uint64 indexed id, uint32 epoch, uint256 toUser, uint256 burned);
    event Unpaid(address indexed to, uint8 token, uint256 amount);
    event Collected(address indexed to, uint8 token, uint256 amount);
    event Withdrawn(uint32 indexed farm, uint8 token, uint256 amount, address to);

    error NotFarmOwner(uint32 farm);
    error NotTheUser(uint64 id);
    error NodeNotActive(uint32 node);
    error NoSuchToken(uint8 token);
    error RateOutOfRange();
    error NoOffer(uint32 offer);
    error NoRoom(uint32 node);
    error DepositTooSmall(uint256 has, uint256 needs);
    error AmountTooLarge();
    error NotOpen(uint64 id);
    error StillOpen(uint64 id);
    error NotDepleted(uint256 when);
    error AwaitsProof(uint256 until);
    error NoOutage();
    error CreditsUsedUp(uint256 until);
    error NothingToWithdraw();
    error TransferFailed(address token);

    /// @param tokens_ All tokens for good; the first is GridToken. None may take a fee on transfers.
    constructor(IRegistry registry_, ICapacity capacity_, Token[] memory tokens_) {
        registry = registry_;
        capacity = capacity_;
        for (uint256 i = 0; i < tokens_.length; i++) {
            tokens.push(tokens_[i]);
        }
    }

    // --- offers --------------------------------------------------------------------------------

    /// @notice Offers capacity of a node, as often as there is room for it.
    function offer(Offer calldata terms) external returns (uint32 id) {
        (, uint32 farm, uint8 state) = registry.identity(terms.node);
        require(farm != 0 && registry.ownerOf(farm) == msg.sender, NotFarmOwner(farm));
        require(state == 1, NodeNotActive(terms.node));
        require(terms.token < tokens.length, NoSuchToken(terms.token));
        require(terms.rate > 0 && terms.storageRate <= terms.rate, RateOutOfRange());
        require(uint256(terms.storageRate) * BOND_SECONDS <= type(uint80).max, RateOutOfRange());
        id = ++offerCount;
        offers[id] = terms;
        offers[id].open = true;
        emit Offered(id, terms.node, terms);
    }

    /// @notice Ends an offer. Reservations of it go on.
    function endOffer(uint32 id) external {
        (, uint32 farm,) = registry.identity(offers[id].node);
        require(farm != 0 && registry.ownerOf(farm) == msg.sender, NotFarmOwner(farm));
        offers[id].open = false;
        emit OfferEnded(id);
    }

    // --- a reservation's life --------------------------------------------------------------------

    /// @notice Reserves what an offer offers.
    /// @param spec A hash of what will run there: for the event alone, no contract asks for it.
    /// @param deposit At least an hour (or the offer's minimum) and the bond.
    function reserve(uint32 offerId, bytes32 spec, uint256 deposit, Permit calldata permit)
        external
        returns (uint64 id)
    {
        Offer memory it = offers[offerId];
        require(it.open, NoOffer(offerId));
        uint256 bond = it.storageRate * BOND_SECONDS;
        uint256 atLeast = it.minSeconds > MIN_SECONDS ? it.minSeconds : MIN_SECONDS;
        uint256 needs = bond + atLeast * it.rate;
        require(deposit >= needs, DepositTooSmall(deposit, needs));
        require(deposit - bond <= type(uint96).max, AmountTooLarge());
        occupy(it.node, it.caps);
        id = ++reservationCount;
        uint32 nowSeconds = uint32(block.timestamp);
        reservations[id] = Reservation({
            user: msg.sender,
            offer: offerId,
            paidTo: nowSeconds,
            end: 0,
            balance: uint96(deposit - bond),
            bond: uint80(bond),
            creditFrom: nowSeconds,
            pausedAt: 0
        });
        emit Reserved(id, offerId, msg.sender, spec, deposit);
        take(it.token, deposit, permit);
    }

    /// @notice Adds to a balance: anyone, until it runs out. After that the user alone, until the bond
    /// runs out too: who resumes a paused machine accepts the time until now as served.
    function topUp(uint64 id, uint256 amount, Permit calldata permit) external {
        Reservation memory it = reservations[id];
        require(it.user != address(0) && it.end == 0, NotOpen(id));
        Offer memory terms = offers[it.offer];
        (uint256 pause, uint256 over) = ends(it, terms);
        uint256 paid;
        if (block.timestamp >= pause) {
            require(block.timestamp < over, NotOpen(id));
            require(msg.sender == it.user, NotTheUser(id));
            paid = accrue(it, terms, block.timestamp);
            (it.creditFrom, it.pausedAt) = (uint32(block.timestamp), 0);
        }
        uint256 sum = it.balance + amount;
        uint256 missing = terms.storageRate * BOND_SECONDS - it.bond;
        require(sum >= missing, DepositTooSmall(amount, missing));
        require(sum - missing <= type(uint96).max, AmountTooLarge());
        it.bond += uint80(missing);
        it.balance = uint96(sum - missing);
        reservations[id] = it;
        emit ToppedUp(id, amount);
        pay(id, it, terms, paid);
        take(terms.token, amount, permit);
    }

    /// @notice Pays what is due; anyone may.
    function settle(uint64 id) public {
        Reservation memory it = reservations[id];
        require(it.user != address(0), NotOpen(id));
        Offer memory terms = offers[it.offer];
        uint256 paid = accrue(it, terms, provenNow(terms.node));
        keep(id, it);
        pay(id, it, terms, paid);
    }

    function settleMany(uint64[] calldata ids) external {
        for (uint256 i = 0; i < ids.length; i++) {
            settle(ids[i]);
        }
    }

    /// @notice The user ends a reservation. The rest is paid back at once if the node is proven until
    /// now, and by `reclaim` otherwise.
    function close(uint64 id) external {
        Reservation memory it = reservations[id];
        require(it.user == msg.sender, NotTheUser(id));
        require(it.end == 0, NotOpen(id));
        Offer memory terms = offers[it.offer];
        (, uint256 over) = ends(it, terms);
        it.end = uint32(block.timestamp < over ? block.timestamp : over);
        vacate(terms.node, terms.caps);
        emit Closed(id, it.end);
        wind(id, it, terms);
    }

    /// @notice Ends a reservation whose balance and bond ran out, or pays back the rest of one that
    /// has ended; anyone may.
    function reclaim(uint64 id) external {
        Reservation memory it = reservations[id];
        require(it.user != address(0), NotOpen(id));
        Offer memory terms = offers[it.offer];
        if (it.end == 0) {
            (, uint256 over) = ends(it, terms);
            require(block.timestamp >= over, NotDepleted(over));
            it.end = uint32(over);
            vacate(terms.node, terms.caps);
            emit Depleted(id, over);
            wind(id, it, terms);
            return;
        }
        bool done = wind(id, it, terms);
        require(done, AwaitsProof(it.end + PROOF_SECONDS));
    }

    /// @notice Credits the user for an epoch in which the node answered no pulse that counts, from
    /// the node's stake. In GridToken only, the token of stakes; epochs in ascending order. Not for time
    /// in which the machine was paused.
    function slaCredit(uint64 id, VerdictPath calldata proof) external {
        Reservation storage it = reservations[id];
        Offer memory terms = offers[it.offer];
        require(it.user != address(0), NotOpen(id));
        capacity.requireFinal(proof.posted);
        EpochTree.requireVerdict(proof);
        uint256 to = capacity.epochEnd(proof.posted.epoch);
        uint256 from = to - 1 hours;
        bool silent = proof.verdict.pulses > 0 && proof.verdict.answered == 0;
        require(silent && proof.verdict.node == terms.node && terms.token == 0, NoOutage());
        (uint256 pause,) = ends(it, terms);
        require(it.creditFrom <= from && pause >= to, NoOutage());
        require(it.end == 0 || it.end >= to, NoOutage());
        require(!registry.inMaintenance(terms.node, from, to), NoOutage());
        it.creditFrom = uint32(to);
        uint256 amount = creditable(terms.node, uint256(terms.rate) * 1 hours * SLA_FACTOR * 2);
        uint256 taken = registry.slash(terms.node, amount, it.user, 5000);
        emit Credited(id, proof.posted.epoch, taken / 2, taken - taken / 2);
    }

    /// @notice Sends a farm's income to its payout address; anyone may.
    function withdraw(uint32 farm, uint8 token) external {
        uint256 amount = earned[farm][token];
        require(amount > 0, NothingToWithdraw());
        earned[farm][token] = 0;
        address to = registry.payoutOf(farm);
        emit Withdrawn(farm, token, amount, to);
        give(tokens[token].token, to, amount);
    }

    /// @notice Pays out what a token would not when it was due; anyone may.
    function collect(address to, uint8 token) external {
        uint256 amount = unpaid[to][token];
        require(amount > 0, NothingToWithdraw());
        unpaid[to][token] = 0;
        emit Collected(to, token, amount);
        give(tokens[token].token, to, amount);
    }

    // --- views -----------------------------------------------------------------------------------

    function offerAt(uint32 id) external view returns (Offer memory) {
        return offers[id];
    }

    function reservationAt(uint64 id) external view returns (Reservation memory) {
        return reservations[id];
    }

    /// @notice What of a node's capacity is reserved.
    function usedOf(uint32 node) external view returns (Caps memory) {
        return used[node];
    }

    function holderOf(uint64 id) external view returns (address user, bool open) {
        Reservation storage it = reservations[id];
        return (it.user, it.user != address(0) && it.end == 0);
    }

    /// @notice What `settle` would pay now, the burned part included.
    function owed(uint64 id) external view returns (uint256) {
        Reservation memory it = reservations[id];
        Offer memory terms = offers[it.offer];
        return it.user == address(0) ? 0 : accrue(it, terms, provenNow(terms.node));
    }

    /// @notice When the machine is paused, and when its storage is freed, if nothing is added.
    function depletesAt(uint64 id) external view returns (uint256 pause, uint256 over) {
        Reservation memory it = reservations[id];
        require(it.user != address(0), NotOpen(id));
        return ends(it, offers[it.offer]);
    }

    // --- inside ----------------------------------------------------------------------------------

    /// Moves a reservation on to `until` and returns what that costs: whole seconds, exact.
    function accrue(Reservation memory it, Offer memory terms, uint256 until)
        private
        pure
        returns (uint256 paid)
    {
        if (it.end != 0 && until > it.end) until = it.end;
        if (until <= it.paidTo) return 0;
        uint256 elapsed = until - it.paidTo;
        uint256 running = it.balance / terms.rate;
        if (running > elapsed) running = elapsed;
        paid = running * terms.rate;
        it.balance -= uint96(paid);
        uint256 kept = elapsed - running;
        if (kept > 0 && it.pausedAt == 0) it.pausedAt = uint32(it.paidTo + running);
        if (kept > 0 && terms.storageRate > 0) {
            uint256 affordable = it.bond / terms.storageRate;
            uint256 cost = (kept < affordable ? kept : affordable) * terms.storageRate;
            it.bond -= uint80(cost);
            paid += cost;
        }
        it.paidTo = uint32(until);
    }

    function ends(Reservation memory it, Offer memory terms)
        private
        pure
        returns (uint256 pause, uint256 over)
    {
        pause = uint256(it.paidTo) + it.balance / terms.rate;
        over = pause + (terms.storageRate == 0 ? 0 : uint256(it.bond) / terms.storageRate);
        if (it.pausedAt != 0) pause = it.pausedAt;
    }

    /// What of an amount may be taken of a node's stake for a credit, which is then counted.
    function creditable(uint32 node, uint256 amount) private returns (uint256) {
        Credits memory it = credits[node];
        if (block.timestamp >= it.since + CREDIT_PERIOD) it = Credits(0, uint64(block.timestamp));
        uint256 most = (registry.stakeOf(node) + it.taken) * CREDIT_BPS / 10_000;
        require(most > it.taken, CreditsUsedUp(it.since + CREDIT_PERIOD));
        if (amount > most - it.taken) amount = most - it.taken;
        it.taken += uint128(amount);
        credits[node] = it;
        return amount;
    }

    function provenNow(uint32 node) private view returns (uint256 until) {
        until = capacity.provenUntil(node);
        if (until > block.timestamp) until = block.timestamp;
    }

    /// Of the payment a tenth, rounded up, is burned.
    function pay(uint64 id, Reservation memory it, Offer memory terms, uint256 paid) private {
        if (paid == 0) return;
        uint256 burned = (paid + 9) / 10;
        (, uint32 farm,) = registry.identity(terms.node);
        earned[farm][terms.token] += paid - burned;
        emit Settled(id, paid - burned, burned, it.paidTo);
        Token memory token = tokens[terms.token];
        if (token.burnable) {
            IGridToken(token.token).burn(burned);
        } else {
            push(terms.token, SINK, burned);
        }
    }

    /// Settles a reservation that has an end; once all of it is proven, or no proof can come any
    /// more, the rest goes back to the user and the reservation is gone.
    function wind(uint64 id, Reservation memory it, Offer memory terms)
        private
        returns (bool done)
    {
        uint256 paid = accrue(it, terms, provenNow(terms.node));
        done = it.paidTo >= it.end || block.timestamp >= it.end + PROOF_SECONDS;
        if (done) {
            delete reservations[id];
        } else {
            reservations[id] = it;
        }
        pay(id, it, terms, paid);
        if (done) {
            uint256 rest = uint256(it.balance) + it.bond;
            emit Refunded(id, it.user, rest);
            if (rest > 0) push(terms.token, it.user, rest);
        }
    }

    function keep(uint64 id, Reservation memory it) private {
        Reservation storage slot = reservations[id];
        (slot.paidTo, slot.balance, slot.bond) = (it.paidTo, it.balance, it.bond);
        slot.pausedAt = it.pausedAt;
    }

    function occupy(uint32 node, Caps memory caps) private {
        (uint8 state, Caps memory all) = registry.room(node);
        require(state == 1, NodeNotActive(node));
        Caps memory now_ = used[node];
        now_.cores += caps.cores;
        now_.memMiB += caps.memMiB;
        now_.ssdMiB += caps.ssdMiB;
        now_.hddMiB += caps.hddMiB;
        now_.mbps += caps.mbps;
        bool fits = now_.cores <= all.cores && now_.memMiB <= all.memMiB
            && now_.ssdMiB <= all.ssdMiB && now_.hddMiB <= all.hddMiB && now_.mbps <= all.mbps;
        require(fits, NoRoom(node));
        used[node] = now_;
    }

    function vacate(uint32 node, Caps memory caps) private {
        Caps memory now_ = used[node];
        now_.cores -= caps.cores;
        now_.memMiB -= caps.memMiB;
        now_.ssdMiB -= caps.ssdMiB;
        now_.hddMiB -= caps.hddMiB;
        now_.mbps -= caps.mbps;
        used[node] = now_;
    }

    function take(uint8 which, uint256 amount, Permit calldata permit) private {
        address token = tokens[which].token;
        if (permit.deadline != 0) {
            // Who saw the permit may have used it first: then the allowance is there already.
            try IGridToken(token).permit(
                msg.sender, address(this), amount, permit.deadline, permit.v, permit.r, permit.s
            ) {} catch {}
        }
        // GridToken is known to take exactly what it says.
        uint256 had = which == 0 ? 0 : IERC20(token).balanceOf(address(this));
        bytes memory data =
            abi.encodeCall(IERC20.transferFrom, (msg.sender, address(this), amount));
        require(call(token, data, gasleft()), TransferFailed(token));
        if (which == 0) return;
        uint256 has = IERC20(token).balanceOf(address(this));
        require(has >= had && has - had == amount, TransferFailed(token));
    }

    function give(address token, address to, uint256 amount) private {
        bytes memory data = abi.encodeCall(IERC20.transfer, (to, amount));
        require(call(token, data, gasleft()), TransferFailed(token));
    }

    /// Pays out, or keeps it to be collected: a token that refuses must not keep a reservation from
    /// ending, and its node's room from being free.
    function push(uint8 which, address to, uint256 amount) private {
        bytes memory data = abi.encodeCall(IERC20.transfer, (to, amount));
        if (call(tokens[which].token, data, PUSH_GAS)) return;
        unpaid[to][which] += amount;
        emit Unpaid(to, which, amount);
    }

    /// Whether a token did what it was asked. Some return nothing. Of what others return, no more is
    /// copied than is looked at.
    function call(address token, bytes memory data, uint256 gasMost)
        private
        returns (bool done)
    {
        uint256 length;
        uint256 word;
        assembly ("memory-safe") {
            done := call(gasMost, token, 0, add(data, 32), mload(data), 0, 32)
            length := returndatasize()
            word := mload(0)
        }
        return done && (length == 0 ? token.code.length > 0 : length >= 32 && word == 1);
    }
}
