// What the page says, in the browser's language where it is one of these.

const english = {
  skip: "Skip to content", privacy: "Privacy mode", tokenTitle: "This upcall asks for its token",
  tokenHelp: "It is kept in this tab alone, and forgotten when you close it.", token: "Token", unlock: "Unlock",
  tokenWrong: "That is not the token.", atAGlance: "At a glance", today: "Today", week: "7 days", month: "This month",
  requests: "Requests", answeredHere: "Answered here", saved: "Saved", spent: "Spent", firstWord: "First word, here",
  speed: "Speed, here", tokensPerSecond: "tokens/s", routesOverTime: "Routes over time", local: "here", cloud: "cloud",
  failed: "failed", reasons: "Why", tryIt: "Try a prompt", prompt: "Prompt", promptHint: "Why is the sky blue?",
  model: "Model", routeAuto: "let upcall decide", routeLocal: "this machine", routeCloud: "cloud", stop: "Stop",
  ask: "Ask", thinking: "Working…", stopped: "Stopped.", cloudShare: "How much may go up",
  cloudShareHelp: "Share of prompts that may go to the cloud", apply: "Apply", budget: "Budget",
  noBudget: "No limit is set (budget.daily_usd and budget.monthly_usd in the settings).", perDay: "today",
  perMonth: "this month", of: "of", parts: "What runs", router: "Router", localModel: "Local model",
  cloudModel: "Cloud", kernel: "Kernel holds", memory: "Memory", queue: "Waiting", wire: "Listening",
  decisions: "Decisions, as they happen", noText: "What was asked and answered is not kept, so it is not shown.",
  time: "Time", route: "Route", reason: "Reason", score: "Score", tokens: "Tokens", took: "Took", cost: "Cost",
  verdict: "Right choice?", right: "Yes", wrong: "No", noneYet: "No request yet.", why: "Why?",
  footer: "upcall answers on this machine, and calls up only when it must.", healthy: "well", degraded: "not all is well",
  unreachable: "no answer from upcall", lost: "The connection to upcall is lost; trying again.",
  expected: (share, count) => `By your last ${count} scored prompts, about ${share} would go up.`,
  expectedShipped: (share) => `By the scores that came with the router, about ${share} would go up.`,
  applied: "Applied.", fixedThreshold: "The settings fix a threshold (routing.threshold), so the share follows from it.",
  noneScored: "No scored prompts yet.", keyReady: "key found", keyMissing: "no key", resting: "left alone after failures", noted: "Noted, here only.",
  scoreOf: (score, threshold) => `score ${score}, threshold ${threshold}`,
  privacyPinned: "Privacy mode is set in config.toml; it can be switched off there alone.",
};

const portuguese = {
  skip: "Ir para o conteúdo", privacy: "Modo privado", tokenTitle: "Este upcall pede o seu token",
  tokenHelp: "Fica só nesta aba e é esquecido quando você a fecha.", token: "Token", unlock: "Entrar",
  tokenWrong: "Esse não é o token.", atAGlance: "Em resumo", today: "Hoje", week: "7 dias", month: "Este mês",
  requests: "Pedidos", answeredHere: "Respondidos aqui", saved: "Economizado", spent: "Gasto",
  firstWord: "Primeira palavra, aqui", speed: "Velocidade, aqui", tokensPerSecond: "tokens/s",
  routesOverTime: "Rotas ao longo do tempo", local: "aqui", cloud: "nuvem", failed: "falhou", reasons: "Por quê",
  tryIt: "Experimente um prompt", prompt: "Prompt", promptHint: "Por que o céu é azul?", model: "Modelo",
  routeAuto: "o upcall decide", routeLocal: "esta máquina", routeCloud: "nuvem", stop: "Parar", ask: "Perguntar",
  thinking: "Trabalhando…", stopped: "Parado.", cloudShare: "Quanto pode subir",
  cloudShareHelp: "Parte dos prompts que pode ir para a nuvem", apply: "Aplicar", budget: "Orçamento",
  noBudget: "Nenhum limite definido (budget.daily_usd e budget.monthly_usd nas configurações).", perDay: "hoje",
  perMonth: "este mês", of: "de", parts: "O que está em execução", router: "Roteador", localModel: "Modelo local",
  cloudModel: "Nuvem", kernel: "Garantido pelo kernel", memory: "Memória", queue: "Na fila", wire: "Escutando",
  decisions: "Decisões, à medida que acontecem",
  noText: "O que foi perguntado e respondido não é guardado e, por isso, não aparece.", time: "Hora", route: "Rota",
  reason: "Motivo", score: "Nota", tokens: "Tokens", took: "Duração", cost: "Custo", verdict: "Foi a escolha certa?",
  right: "Sim", wrong: "Não", noneYet: "Nenhum pedido ainda.", why: "Por quê?",
  footer: "O upcall responde nesta máquina e só recorre à nuvem quando precisa.", healthy: "tudo bem",
  degraded: "nem tudo vai bem", unreachable: "o upcall não responde",
  lost: "A conexão com o upcall caiu; tentando de novo.",
  expected: (share, count) => `Pelos seus últimos ${count} prompts com nota, cerca de ${share} subiriam.`,
  expectedShipped: (share) => `Pelas notas que vieram com o roteador, cerca de ${share} subiriam.`,
  applied: "Aplicado.",
  fixedThreshold: "As configurações fixam um limiar (routing.threshold); a parte decorre dele.",
  noneScored: "Nenhum prompt com nota ainda.", keyReady: "chave encontrada", keyMissing: "sem chave", resting: "em pausa depois de falhas",
  noted: "Anotado, só aqui.", scoreOf: (score, threshold) => `nota ${score}, limiar ${threshold}`,
  privacyPinned: "O modo privado está definido no config.toml; só ali pode ser desligado.",
};

const portugueseReasons = {
  below_threshold: "o roteador espera que o modelo local dê conta",
  above_threshold: "o roteador espera que a resposta da nuvem seja claramente melhor",
  forced_local: "o pedido quis o modelo local",
  forced_cloud: "o pedido quis o modelo da nuvem",
  sensitive: "contém algo que parece particular, e as configurações mantêm isso aqui",
  privacy: "o modo privado mantém tudo nesta máquina",
  no_key: "nenhuma chave de API para a nuvem pode ser lida; `upcall key set` guarda uma",
  context_length: "o prompt não cabe no contexto do modelo local",
  images: "o prompt tem imagens ou áudio, que o modelo local não lê",
  tools: "o pedido tem ferramentas, que o modelo local não sabe chamar",
  conversation: "o modelo que começou a chamar ferramentas nesta conversa continua nela",
  local_failed: "o modelo local falhou, e as configurações deixam esses prompts subir",
  cloud_failed: "a nuvem não respondeu; o modelo local respondeu",
  no_router: "nenhum roteador está carregado, então nada sobe; `upcall pull` busca o codificador",
  budget: "o orçamento do dia acabou",
  budget_month: "o orçamento do mês acabou",
  budget_unknown: "há um orçamento, e o registro que o controla não pode ser gravado; `upcall doctor` diz por quê",
  max_cost: "poderia custar mais do que o pedido permite",
  unknown_price: "o preço do modelo da nuvem não é conhecido",
  unknown_cost: "o que ele pede pode custar mais do que o preço de lista, não se sabe quanto: peça menos",
  unknown_tools: "ninguém sabe quanto podem custar as ferramentas do próprio provedor neste pedido: `budget.tools_usd`",
  battery: "a bateria está fraca",
  low_confidence: "o modelo local mostrou-se inseguro ao começar a responder",
  no_user_turn: "a conversa não tem palavras do usuário para o roteador avaliar, e fica aqui",
  not_judged: "o modelo local não teve tempo de julgar o prompt, que fica aqui",
  not_calibrated: "o causal_llm não está calibrado para este modelo local: `upcall judge train`; nada sobe",
};

const portugueseOutcomes = {
  bad_request: "pedido errado", context_length_exceeded: "não cabe no contexto", busy: "fila cheia",
  unavailable: "indisponível", no_key: "sem chave", authentication: "chave recusada", rate_limited: "limite do provedor",
  timeout: "tempo esgotado", upstream: "erro do provedor", cancelled: "cancelado", refused: "recusado",
  internal_error: "erro interno", lost: "perdido",
};

const isPortuguese = navigator.language.toLowerCase().startsWith("pt");

export const languages = { english, portuguese };
export const locale = isPortuguese ? "pt-BR" : "en";
export const text = isPortuguese ? portuguese : english;

/** The sentence for a decision: the daemon's own in English, this page's where it has the code in Portuguese. */
export function reasonText(code, sentence) {
  return (isPortuguese && portugueseReasons[code]) || sentence || code?.replaceAll("_", " ") || "–";
}

/** How a request ended that was not answered. */
export function outcomeText(outcome) {
  return (isPortuguese && portugueseOutcomes[outcome]) || outcome.replaceAll("_", " ");
}

export function translatePage() {
  document.documentElement.lang = isPortuguese ? "pt-BR" : "en";
  for (const node of document.querySelectorAll("[data-text]")) node.textContent = text[node.dataset.text];
  for (const node of document.querySelectorAll("[data-hint]")) node.placeholder = text[node.dataset.hint];
}
