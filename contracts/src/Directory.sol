// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

/// @title Names of contracts, with all versions that ever were.
/// @notice A new version is announced seven days before it can be activated, and nothing is ever
/// replaced: who trusts version 1 stays with it. The directory holds no funds and forwards no call.
contract Directory {
    /// @notice How long a proposal can be seen before it can be activated.
    uint256 public constant DELAY = 7 days;
    /// @notice A proposal that nobody activates lapses.
    uint256 public constant LIFE = 30 days;

    struct Proposal {
        address target;
        uint64 readyAt;
    }

    address public governor;
    address public nextGovernor;
    mapping(bytes32 => address[]) private versions;
    mapping(bytes32 => Proposal) public proposals;

    event Proposed(bytes32 indexed name, address target, uint64 readyAt);
    event Withdrawn(bytes32 indexed name, address target);
    event Activated(bytes32 indexed name, uint256 version, address target);
    event GovernorChanged(address governor);

    error NotGovernor();
    error NothingProposed(bytes32 name);
    error TooEarly(uint256 readyAt);
    error Lapsed(uint256 when);
    error NotAContract(address target);
    error NoSuchVersion(bytes32 name, uint256 version);
    error LengthsDiffer();

    /// @param names What is there from the start, as version 1. @param targets Their addresses.
    constructor(address governor_, bytes32[] memory names, address[] memory targets) {
        require(names.length == targets.length, LengthsDiffer());
        governor = governor_;
        for (uint256 i = 0; i < names.length; i++) {
            versions[names[i]].push(targets[i]);
            emit Activated(names[i], versions[names[i]].length, targets[i]);
        }
    }

    modifier onlyGovernor() {
        require(msg.sender == governor, NotGovernor());
        _;
    }

    /// @notice Announces the next version of a name.
    function propose(bytes32 name, address target) external onlyGovernor {
        require(target.code.length > 0, NotAContract(target));
        uint64 readyAt = uint64(block.timestamp + DELAY);
        proposals[name] = Proposal(target, readyAt);
        emit Proposed(name, target, readyAt);
    }

    /// @notice Takes an announcement back.
    function withdraw(bytes32 name) external onlyGovernor {
        emit Withdrawn(name, proposals[name].target);
        delete proposals[name];
    }

    /// @notice Makes an announced version the newest one; anyone may, once the delay is over.
    function activate(bytes32 name) external {
        Proposal memory proposal = proposals[name];
        require(proposal.target != address(0), NothingProposed(name));
        require(block.timestamp >= proposal.readyAt, TooEarly(proposal.readyAt));
        uint256 lapses = proposal.readyAt + LIFE;
        require(block.timestamp < lapses, Lapsed(lapses));
        delete proposals[name];
        versions[name].push(proposal.target);
        emit Activated(name, versions[name].length, proposal.target);
    }

    /// @notice Hands the governor's role over; the new one must accept.
    function offerGovernor(address next) external onlyGovernor {
        nextGovernor = next;
    }

    function acceptGovernor() external {
        require(msg.sender == nextGovernor, NotGovernor());
        governor = msg.sender;
        nextGovernor = address(0);
        emit GovernorChanged(msg.sender);
    }

    /// @return target The newest version's address. @return version Its number, from 1.
    function latest(bytes32 name) external view returns (address target, uint256 version) {
        version = versions[name].length;
        require(version > 0, NoSuchVersion(name, 0));
        target = versions[name][version - 1];
    }

    /// @param version From 1.
    function versionAt(bytes32 name, uint256 version) external view returns (address) {
        require(version > 0 && version <= versions[name].length, NoSuchVersion(name, version));
        return versions[name][version - 1];
    }
}
