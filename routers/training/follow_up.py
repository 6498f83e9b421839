"""Trains `routers/follow_up.py`: `python -m routers.training.follow_up --data DIR --encoder FILE`.

A logistic layer over the encoder's vectors: sentences written for it that ask nothing new, against others that do and
ordinary prompts. What `benchmarks/conversations.py` judges it by is not among them.
"""

import argparse
import json
import os
from datetime import date
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from sklearn.linear_model import LogisticRegression

from routers.encoder import Encoder
from routers.follow_up import ARTIFACT, FORMAT

PROMPTS = 1500
LONGEST = 160
"""Characters: longer prompts would only teach that what is long asks something."""
EMPTY = (
    "Please continue with your answer.",
    "Carry on, I am still reading along.",
    "Keep going until you have finished the whole thing.",
    "Continua a tua resposta, por favor.",
    "Segue em frente, ainda não terminaste.",
    "Your last message ended before it was complete.",
    "You stopped halfway, give me what is missing.",
    "A tua última mensagem ficou incompleta, falta o fim.",
    "Thank you, that helped me a lot.",
    "Great answer, thanks for your time.",
    "Obrigada, isso ajudou-me imenso.",
    "Perfeito, agradeço a explicação.",
    "I have to go now, talk to you later, goodbye.",
    "Tenho de ir, até amanhã e bom trabalho.",
    "Okay, I understand it now.",
    "I see, that makes sense to me.",
    "Está bem, já percebi o que queres dizer.",
    "That is fine, go ahead and apply the changes.",
    "Good, you can save it and submit it now.",
    "Parece bem, podes avançar e guardar as alterações.",
    "That did not work, please try it once more.",
    "Could you generate the answer again?",
    "Não resultou, tenta outra vez, por favor.",
    "Sorry, I did not get that, can you say it again?",
    "Não percebi, podes repetir o que disseste?",
    "Could you make that a bit shorter and simpler, please?",
    "Please give me a longer version with more details.",
    "Podes resumir isso e usar palavras mais simples?",
    "Now say the same thing in another language, please.",
    "Agora diz o mesmo em inglês, se faz favor.",
    "Are you really sure that this is correct?",
    "I think that is wrong, check it again.",
    "Tens mesmo a certeza de que isso está certo?",
    "Wait a moment, I will be right back.",
    "Espera um pouco, já volto a falar contigo.",
)
ASKING = (
    "Thanks, and how would you show that the series converges for every x?",
    "Continue the story, but from the point of view of the lighthouse keeper's daughter.",
    "Go on and add unit tests that cover negative numbers and empty input.",
    "Now do the same for a matrix that is not symmetric.",
    "Okay, but why is the time complexity not quadratic in the worst case?",
    "Good, now compare both treaties and say which one favoured France.",
    "Can you also estimate the standard error by bootstrapping?",
    "Are you sure? The integral diverges when alpha is below one.",
    "Try again with a solution that uses only constant memory.",
    "Make it shorter, drop the adjectives and write it as a sonnet.",
    "Explain the second step again: where does the factor of two come from?",
    "Please continue with chapter three, in which the detective finds the forged will.",
    "I think that is wrong, since seven is not a divisor of forty.",
    "What if the interest is compounded monthly and I pay 200 euros extra each year?",
    "Change the query so that customers without orders are listed, too.",
    "And how does that differ from what Kant says about duty?",
    "Obrigado, e como se demonstra que essa função é contínua em zero?",
    "Continua, mas escreve o capítulo seguinte na perspetiva do cão.",
    "Agora faz o mesmo para uma população que cresce de forma logística.",
    "Está bem, mas porque é que o índice não é usado nessa consulta?",
    "Tenta outra vez, sem usar recursão e com memória constante.",
    "E se a taxa subir para 5 %, quanto pago a mais em vinte anos?",
    "Resume isso numa tabela com as causas, as datas e os países envolvidos.",
    "Traduz o terceiro parágrafo para alemão e mantém os termos jurídicos.",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("UPCALL_DATA"), help="folder of the data files")
    parser.add_argument("--encoder", type=Path, required=True, help="the file of use-multilingual")
    options = parser.parse_args()
    encoder = Encoder(options.encoder)
    table = pq.read_table(options.data / "arena55k_subset.parquet", columns=["prompt"])
    short = sorted({prompt for prompt in table["prompt"].to_pylist() if len(prompt) <= LONGEST})
    prompts = [short[row] for row in np.random.default_rng(0).permutation(len(short))[:PROMPTS]]
    vectors = encoder.embed([*EMPTY, *ASKING, *prompts])
    is_empty = np.arange(len(vectors)) < len(EMPTY)
    # What asks something and still looks like a follow-up is rare among the prompts, and what it is all about.
    weights = np.where(is_empty, len(prompts) / len(EMPTY), 1.0)
    weights[len(EMPTY) : len(EMPTY) + len(ASKING)] = len(prompts) / len(ASKING) / 2
    layer = LogisticRegression(C=3.0, max_iter=2000).fit(vectors, is_empty, sample_weight=weights)
    ARTIFACT.parent.mkdir(exist_ok=True)
    told = {
        "format": FORMAT,
        "date": date.today().isoformat(),
        "bias": round(float(layer.intercept_[0]), 4),
        "weights": [round(float(weight), 4) for weight in layer.coef_[0]],
    }
    ARTIFACT.write_text(json.dumps(told) + "\n")


if __name__ == "__main__":
    main()
