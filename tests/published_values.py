"""Numbers that courses print with their assignments, with the inputs that belong to them and where they are printed.

Inputs are made as the courses make them: evenly spaced numbers, or draws from NumPy's old generator, which never
changes, in the order in which the notebook draws them. Arrays are in the layout of the course.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

# How a number is printed, and so how far from it the true one may be.
DECIMALS = "8 decimals"  # half a unit of the 8th decimal
SCIENTIFIC = "9 significant digits"  # NumPy's 1.23456789e-05: half a unit of each number's own last digit
FULL = "all digits"  # what float64 holds; sums taken in another order differ in the last two digits, 14 are compared


@dataclass(frozen=True)
class Printed:
    """One printed array, or a part of one.

    Attributes:
        name: What the convention calls the array.
        value: What is printed.
        at: The part of the array that it is.
        digits: DECIMALS, SCIENTIFIC or FULL.
    """

    name: str
    value: Any
    at: tuple[Any, ...] = ()
    digits: str = DECIMALS


@dataclass(frozen=True)
class Record:
    """One call of an assignment.

    Attributes:
        convention: Whose names and layout these are.
        level: "step" or "sequence".
        arrays: What is given, by the convention's names.
        printed: What is printed of the results.
    """

    convention: str
    level: str
    arrays: dict[str, Array]
    printed: tuple[Printed, ...]


def spaced(**arrays: tuple[float, float, tuple[int, ...]]) -> dict[str, Array]:
    """Evenly spaced numbers from the first to the second, in this shape."""
    return {
        name: np.linspace(first, last, int(np.prod(shape))).reshape(shape)
        for name, (first, last, shape) in arrays.items()
    }


def drawn(seed: int, **shapes: tuple[int, ...]) -> dict[str, Array]:
    """Normal draws, one array after the other in this order."""
    numbers = np.random.RandomState(seed)
    return {name: numbers.standard_normal(shape) for name, shape in shapes.items()}


RECORDS: dict[str, Record] = {}

# cs231n/cs231n.github.io, assignments/2024/assignment3_colab.zip, assignment3/RNN_Captioning.ipynb
RECORDS["cs231n, forward step"] = Record(
    "cs231n",
    "step",
    spaced(
        x=(-0.4, 0.7, (3, 10)),
        prev_h=(-0.2, 0.5, (3, 4)),
        Wx=(-0.1, 0.9, (10, 4)),
        Wh=(-0.3, 0.7, (4, 4)),
        b=(-0.2, 0.4, (4,)),
    ),
    (
        Printed(
            "next_h",
            [
                [-0.58172089, -0.50182032, -0.41232771, -0.31410098],
                [0.66854692, 0.79562378, 0.87755553, 0.92795967],
                [0.97934501, 0.99144213, 0.99646691, 0.99854353],
            ],
        ),
    ),
)
RECORDS["cs231n, forward"] = Record(
    "cs231n",
    "sequence",
    spaced(
        x=(-0.1, 0.3, (2, 3, 4)),
        h0=(-0.3, 0.1, (2, 5)),
        Wx=(-0.2, 0.4, (4, 5)),
        Wh=(-0.4, 0.1, (5, 5)),
        b=(-0.7, 0.1, (5,)),
    ),
    (
        Printed(
            "h",
            [
                [
                    [-0.42070749, -0.27279261, -0.11074945, 0.05740409, 0.22236251],
                    [-0.39525808, -0.22554661, -0.0409454, 0.14649412, 0.32397316],
                    [-0.42305111, -0.24223728, -0.04287027, 0.15997045, 0.35014525],
                ],
                [
                    [-0.55857474, -0.39065825, -0.19198182, 0.02378408, 0.23735671],
                    [-0.27150199, -0.07088804, 0.13562939, 0.33099728, 0.50158768],
                    [-0.51014825, -0.30524429, -0.06755202, 0.17806392, 0.40333043],
                ],
            ],
        ),
    ),
)

# The same notebook, backward: it prints no gradients. An executed copy, BatyrM/CS231n-Spring-2020 at 112ec76, prints
# how far they are from central differences, the largest |x - y| / max(1e-8, |x| + |y|) over the entries. That is the
# error of the differences, not of the gradients.
CS231N_BACKWARD = Record(
    "cs231n",
    "sequence",
    drawn(231, x=(2, 10, 3), h0=(2, 5), Wx=(3, 5), Wh=(5, 5), b=(5,), dh=(2, 10, 5)),
    (),
)
CS231N_STEP = 1e-5  # of the differences
CS231N_ERRORS = {
    "dx": 1.5382468491701097e-09,
    "dh0": 3.3839681556240896e-09,
    "dWx": 7.150535245339328e-09,
    "dWh": 1.297338408201546e-07,
    "db": 1.4889022954777414e-10,
}

# amanchadha/coursera-deep-learning-specialization, C5 - Sequence Models/Week 1/Building a Recurrent Neural Network -
# Step by Step/Building_a_Recurrent_Neural_Network_Step_by_Step.ipynb; the numbers with all digits of the backward pass
# are those of the notebook's earlier version. The notebook also prints x[1][3], which is an input.
RECORDS["coursera, forward"] = Record(
    "coursera",
    "sequence",
    drawn(1, x=(3, 10, 4), a0=(5, 10), Waa=(5, 5), Wax=(5, 3), Wya=(2, 5), ba=(5, 1), by=(2, 1)),
    (
        Printed("a", [-0.99999375, 0.77911235, -0.99861469, -0.99833267], (4, 1)),
        Printed("y_pred", [0.79560373, 0.86224861, 0.11118257, 0.81515947], (1, 3)),
        Printed("x", [-1.1425182, -0.34934272, -0.20889423, 0.58662319], (1, 3)),
    ),
)
RECORDS["coursera, backward step"] = Record(
    "coursera",
    "step",
    drawn(1, xt=(3, 10), a_prev=(5, 10), Wax=(5, 3), Waa=(5, 5), Wya=(2, 5), ba=(5, 1), by=(2, 1), da_next=(5, 10)),
    (
        Printed("dxt", -1.3872130506020928, (1, 2), FULL),
        Printed("da_prev", -0.15239949377395473, (2, 3), FULL),
        Printed("dWax", 0.41077282493545836, (3, 1), FULL),
        Printed("dWaa", 1.1503450668497135, (1, 2), FULL),
        Printed("dba", [0.20023491], (4,)),
    ),
)
RECORDS["coursera, backward"] = Record(
    "coursera",
    "sequence",
    drawn(1, x=(3, 10, 4), a0=(5, 10), Wax=(5, 3), Waa=(5, 5), Wya=(2, 5), ba=(5, 1), by=(2, 1), da=(5, 10, 4)),
    (
        Printed("dx", [-2.07101689, -0.59255627, 0.02466855, 0.01483317], (1, 2)),
        Printed("da0", -0.31494237512664996, (2, 3), FULL),
        Printed("dWax", 11.264104496527775, (3, 1), FULL),
        Printed("dWaa", 2.303333126579893, (1, 2), FULL),
        Printed("dba", [-0.74747722], (4,)),
    ),
)

# ObaOzai/SharedCode, pa3a_assignment_2.ipynb, the test of one cell. Its h_t is no tanh of anything: no network has
# these states, only the formulas of the backward pass can be asked.
MYTORCH_CELL = Record(
    "mytorch",
    "step",
    {
        "h_prev_l": np.array([[-0.62162275, -0.96164911, 0.21242244], [0.27069328, -0.83331687, -0.6866582]]),
        "h_prev_t": np.array(
            [[0.33983293, 0.93178091, 0.69990522, -0.15981829], [0.12239934, -0.56387259, -0.9556718, -0.31575391]]
        ),
        "h_t": np.array([[1.0, 2.0, 3.0, 4.0], [3.0, 2.0, 1.0, 0.0]]),
        "delta": np.array(
            [[0.402888, 0.01693988, 0.04669028, 0.54219921], [-0.88253697, 0.11543817, -0.70723666, -0.69393529]]
        ),
        "W_ih": np.array([[-0.01, -0.02, -0.03], [0.01, 0.02, 0.03], [0.04, 0.05, 0.06], [0.07, 0.08, 0.09]]),
        "W_hh": np.arange(-8, 8).reshape(4, 4) / 100,
        "b_ih": np.array([-0.01, -0.02, 0.03, 0.04]),
        "b_hh": np.array([0.01, 0.02, -0.03, -0.04]),
    },
    (
        Printed("dx", [[-0.58475826, -0.67033156, -0.75590486], [-0.12264157, -0.20364703, -0.28465248]]),
        Printed(
            "dh_prev_t",
            [
                [-0.32328674, -0.40886004, -0.49443334, -0.58000664],
                [-0.57872849, -0.51852803, -0.45832757, -0.39812711],
            ],
        ),
        Printed(
            "dW_ih",
            [
                [1.91117462, -5.88346356, -4.84800998],
                [-0.06215437, 0.33746039, 0.22700447],
                [0.23218992, 0.35919733, -0.07934451],
                [4.86780684, 8.3993488, -1.25113283],
            ],
        ),
        Printed(
            "dW_hh",
            [
                [0.86417554, -3.98110726, -6.74732556, -2.22931599],
                [-0.05965885, 0.14792449, 0.29539408, 0.11747207],
                [-0.12693516, -0.34804089, -0.26143017, 0.05969569],
                [-2.84879441, -7.18687201, -5.02914647, 1.51891304],
            ],
        ),
        Printed("db_ih", [7.06029576, -0.39713415, -0.37352224, -8.82692344]),
        Printed("db_hh", [7.06029576, -0.39713415, -0.37352224, -8.82692344]),
    ),
)

# The same notebook, the test of a sequence: one layer, the loss sees the last state alone. Two of its three rows are
# saturated: 1 - h² is a rounding error there, or zero.
_LAST = np.array(
    [
        [0.93211174, -0.38224902, -0.48032845, 0.74022526, -0.24474702],
        [0.0575357, 0.86414712, 0.30018032, 0.95602853, 0.09027887],
        [-0.62221448, 0.56082445, -0.75347751, 0.4888543, 0.80749852],
    ]
)
RECORDS["mytorch, backward"] = Record(
    "mytorch",
    "sequence",
    {
        "x": np.array(
            [
                [
                    [-0.37172187, 0.75289209],
                    [-0.74297175, -0.02525347],
                    [0.53391313, -0.67597502],
                    [-0.7237738, -0.26039564],
                    [-0.80266149, 0.16000827],
                ],
                [
                    [0.21733297, 0.63915498],
                    [-0.29721541, -0.99389827],
                    [-0.41202637, -0.26365921],
                    [-0.12466216, -0.60468756],
                    [0.93159041, -0.78198452],
                ],
                [
                    [-0.87435205, -0.84892116],
                    [0.46827638, 0.34440284],
                    [0.88852153, 0.09396869],
                    [-0.9570812, -0.00129956],
                    [0.24959137, -0.85093966],
                ],
            ]
        ),
        "h0": np.array([[0.02, 0.0005, 0.15, 0.45, 0.25], [-0.001, 2, 1, 0, -0.25], [1.0, -2, -5, -10, 0]]),
        "W_ih": np.array([[-0.005, -5], [0, 1], [3, 4], [6, 2], [0, 0]]),
        "W_hh": np.array(
            [[-5, -4, -3, -2, -1], [-4, -3, -2, -1, 0], [0, 1, 2, 3, 0], [4, 5, 6, 7, 6], [7, 8, 9, -0.25, 0.25]]
        ),
        "b_ih": np.array([-0.0002, -2, 1, 1, 0]),
        "b_hh": np.array([0.001, 2, -3, -4, 0]),
        "dh": np.concatenate([np.zeros((3, 4, 5)), _LAST[:, None]], 1),
    },
    (
        Printed(
            "dx",
            [
                [
                    [-0.173587235, -0.184859274],
                    [-0.210157727, -0.310148978],
                    [-0.118140314, -0.153273205],
                    [-0.180692135, -0.100724382],
                    [-0.110391519, -0.15825979],
                ],
                [
                    [3.84159435e-14, 5.13133304e-14],
                    [1.557905e-10, 1.3452464e-10],
                    [2.0837204e-09, 1.5093899e-09],
                    [-5.69381085e-10, -4.35540199e-09],
                    [-0.000127126751, -0.138603488],
                ],
                [
                    [0.0, 0.0],
                    [2.63760419e-14, 3.70017775e-14],
                    [2.06188614e-12, 2.74921203e-12],
                    [5.34233353e-12, 5.24693442e-09],
                    [-5.0353593e-09, 1.9798465e-08],
                ],
            ],
            digits=SCIENTIFIC,
        ),
        Printed(
            "dh0",
            [
                [0.164933002, 0.0634162948, -0.0381004124, -0.130593971, -0.107463917],
                [-3.68297464e-16, 1.25290914e-14, 2.54264803e-14, 3.83238691e-14, 2.21218307e-21],
                [0.0, 0.0, 0.0, 0.0, 0.0],
            ],
            digits=SCIENTIFIC,
        ),
        Printed(
            "dW_ih",
            [
                [0.0220453, -0.0212481],
                [0.02825181, -0.04561209],
                [0.08148023, 0.00876873],
                [0.02208819, -0.00707508],
                [-0.0001367, -0.00068082],
            ],
        ),
        Printed(
            "dW_hh",
            [
                [0.0233326904, 0.0266457137, -0.0238787507, -0.0243003742, -0.024169765],
                [0.00643834646, 0.000766293719, -0.0161170487, -0.0347046676, -0.022063437],
                [0.0466043468, -0.0565790584, -0.053764435, -0.165690075, -0.0616570714],
                [0.0247586179, 0.0252033992, -0.0247794363, -0.0297924309, -0.0296926482],
                [-0.00064779992, -5.01904409e-05, 0.000443280848, 0.000202181324, 0.000343681699],
            ],
            digits=SCIENTIFIC,
        ),
        Printed("db_ih", [0.03143973, -0.06789479, -0.18548756, -0.0394127, -0.0002507]),
        Printed("db_hh", [0.03143973, -0.06789479, -0.18548756, -0.0394127, -0.0002507]),
    ),
)
