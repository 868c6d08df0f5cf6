"""The contract of methods and codecs, as checks that anybody can run on their own.

As scikit-learn's `check_estimator` does for estimators, `check_method` and `check_codec` run all checks and
raise one error that lists what failed. `method_checks` and `codec_checks` return the checks one by one, for
`pytest.mark.parametrize`::

    @pytest.mark.parametrize("check", [pytest.param(c, id=name) for name, c in method_checks(MyMethod)])
    def test_contract(check):
        check()

They train small models on digits for a few rounds, which takes seconds for each check.
"""

from fedistill.testing.checks import ContractError as ContractError
from fedistill.testing.codecs import check_codec as check_codec
from fedistill.testing.codecs import codec_checks as codec_checks
from fedistill.testing.methods import check_method as check_method
from fedistill.testing.methods import method_checks as method_checks
